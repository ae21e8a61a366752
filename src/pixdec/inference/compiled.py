"""The network's blocks compiled by `torch.compile`, from outside: weights, names and results stay as they are.

Compiled are the patch blocks, and what the pixel blocks do to some patches at a time: there the elementwise work lies
that compilation fuses. Pixel blocks see the same number of patches at every image size, so they are compiled once; of
the patch blocks there is one version for each of the usual sizes (`BUCKETS`), and one for all others, whose number of
tokens is left open. What was compiled is kept on disk for the next process.
"""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pixdec.io.files import cache_folder
from pixdec.models.network import Network
from pixdec.models.pid import PiD

# Patch tokens of square outputs of 512, 1024, 2048 and 4096 pixels with patches of 16.
BUCKETS = frozenset({1024, 4096, 16384, 65536})
_PIXEL_PARTS = ("squeeze", "mix")
_VARIANTS = 64  # of one function, before PyTorch gives up compiling it: sizes, dtypes, last blocks


def compile_blocks(network: Network, backend: str = "inductor") -> None:
    """From now on the blocks run compiled, by a backend of `torch.compile`. The first call on a new size takes the time
    of compiling, seconds to minutes."""
    _keep_on_disk()
    if not isinstance(network, PiD):
        for block in network.blocks:
            vars(block)["forward"] = torch.compile(block.forward, dynamic=True, backend=backend)
        return
    for block in network.backbone.patch_blocks:
        vars(block)["forward"] = _by_size(block.forward, backend)
    for block in network.backbone.pixel_blocks:
        for part in _PIXEL_PARTS:
            vars(block)[part] = torch.compile(getattr(block, part), dynamic=False, backend=backend)


def _by_size(forward: Callable[..., Any], backend: str) -> Callable[..., Any]:
    """A block's forward, compiled for the number of tokens it meets if that is a usual one, else for any."""
    exact = torch.compile(forward, dynamic=False, backend=backend)
    any_size = torch.compile(forward, dynamic=True, backend=backend)

    def by_size(x: Tensor, *arguments: Any) -> Any:
        return (exact if x.shape[1] in BUCKETS else any_size)(x, *arguments)

    return by_size


def _keep_on_disk() -> None:
    """Compiled code goes to the cache folder, not to the temporary one, unless the user said where."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    config: Any = torch._dynamo.config  # pyright: ignore[reportPrivateUsage]
    config.recompile_limit = max(config.recompile_limit, _VARIANTS)
