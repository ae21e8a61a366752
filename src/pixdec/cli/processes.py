"""One process of several, as torchrun starts them: its share of the work, its device, and the end of all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from pixdec.cli.report import progress

if TYPE_CHECKING:
    from tqdm import tqdm

_PATIENCE = timedelta(days=7)  # for the slowest process


@dataclass(frozen=True)
class Process:
    """`rank` of `world` processes, `local` among those of its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    @classmethod
    def here(cls) -> Process:
        """As RANK, WORLD_SIZE and LOCAL_RANK say; without the first two, the only process.

        Raises:
            ValueError: they are no numbers, or do not fit each other.
        """
        given = [os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")]
        if given[0] is None or given[1] is None:
            return cls()
        try:
            rank, world, local = (int(text) for text in (given[0], given[1], given[2] or given[0]))
        except ValueError as error:
            raise ValueError(f"RANK, WORLD_SIZE, LOCAL_RANK are {given}; expected numbers, as torchrun sets") from error
        if not (0 <= rank < world and local >= 0):
            raise ValueError(f"RANK {rank} of WORLD_SIZE {world}: expected 0 to {world - 1}")
        return cls(rank, world, local)

    def takes(self, number: int) -> bool:
        """Whether piece `number` of the work is this process's: every `world`-th, beginning with `rank`."""
        return number % self.world == self.rank

    def device(self, named: str | None) -> str:
        """The device of this process: the one named, else the fastest; of several GPUs, its own.

        Raises:
            ValueError: one GPU is named for several processes, or there are fewer GPUs than processes.
        """
        import torch

        from pixdec.devices import best_device

        kind = str(best_device()) if named is None else named
        if self.world == 1 or not kind.startswith("cuda"):
            return kind
        if kind != "cuda":
            raise ValueError(f"--device {named}: of {self.world} processes each takes its own GPU; say --device cuda")
        if self.local >= torch.cuda.device_count():
            raise ValueError(
                f"process {self.local} of this machine finds {torch.cuda.device_count()} GPUs; start one process for "
                "each GPU (torchrun --nproc-per-node)"
            )
        return f"cuda:{self.local}"

    def progress(self, total: int, unit: str) -> tqdm[None]:
        """A progress bar that only the first process shows."""
        if self.rank == 0:
            return progress(total, unit)
        from tqdm import tqdm

        return cast("tqdm[None]", tqdm(disable=True))

    def any_failed(self, failed: bool) -> bool:
        """Whether this or another process failed; returns when all are done.

        torchrun ends all processes as soon as one exits with an error: none may leave while others still work. Without
        MASTER_ADDR the processes do not know each other, and each speaks for itself.
        """
        if self.world == 1 or "MASTER_ADDR" not in os.environ:
            return failed
        import torch
        from torch import distributed

        distributed.init_process_group("gloo", rank=self.rank, world_size=self.world, timeout=_PATIENCE)
        failures = torch.tensor(int(failed))
        distributed.all_reduce(failures)
        distributed.destroy_process_group()
        return bool(failures)
