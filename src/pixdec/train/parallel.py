"""Several processes that train one network, each on its share of every batch. torchrun starts them:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m pixdec.train.decoder …

On a CPU that is quicker than as many threads in one process: a small network's operations are too short to be split.
The trajectory is that of one process, but for the rounding of sums.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import distributed
from torch.nn import Parameter


@dataclass(frozen=True)
class Share:
    """Process number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def places(self, batch: int) -> range:
        """Which places of a batch are this process's. ValueError if they cannot be shared evenly."""
        if batch % self.count:
            raise ValueError(
                f"a batch of {batch} on {self.count} processes: take a number of processes that divides it"
            )
        each = batch // self.count
        return range(self.rank * each, (self.rank + 1) * each)


def join() -> Share:
    """Meets the other processes, if torchrun started any."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share()
    distributed.init_process_group("gloo")
    return Share(distributed.get_rank(), distributed.get_world_size())


def average_gradients(parameters: Iterable[Parameter]) -> None:
    """Replaces every gradient by its mean over the processes; nothing for one alone."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    distributed.all_reduce(flat)
    flat /= distributed.get_world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
