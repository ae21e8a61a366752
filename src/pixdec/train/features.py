"""Looking at what a network computes inside, from outside."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pixdec.models.grid import Grid
from pixdec.models.pid import PiD


class Seen:
    """The tokens that a patch block put out in the last call, in parts if the block works band by band."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def tokens(self) -> Tensor:
        """(B,L,D)"""
        assert self.parts, "the network was not called"
        return torch.cat(self.parts, 1)

    def grid(self, height: int, width: int, patch: int) -> Tensor:
        """(B,D,H/p,W/p) for an image of height x width."""
        return self.tokens().transpose(1, 2).unflatten(2, (height // patch, width // patch))


@contextmanager
def watching(network: PiD, block: int) -> Generator[Seen]:
    """Inside the block of code, the image tokens that patch block number `block` puts out are kept in what is yielded;
    gradients flow through them. ValueError if there is no such block."""
    blocks = network.backbone.patch_blocks
    if not 0 <= block < len(blocks):
        raise ValueError(f"block={block}: this network has {len(blocks)} patch blocks, numbered from 0")
    seen = Seen()

    def keep(module: nn.Module, inputs: tuple[object, ...], output: tuple[Tensor, Tensor | None]) -> None:
        grid = inputs[3]
        assert isinstance(grid, Grid)
        seen.parts.append(grid.whole(output[0], 1))

    handle = blocks[block].register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
