"""How a batch is decoded: with which weights, in tiles or as a whole, how much of it at a time."""

from dataclasses import dataclass, replace

import torch

from pixdec.inference.config import CompileMode, KernelName, Quantize
from pixdec.inference.sizes import Size
from pixdec.sampling.tiling import Tiling

CHUNKS = 1024, 256  # patches that the pixel blocks work on at a time, the usual number first
TILES = 2048, 1024, 512  # pixels a side


@dataclass(frozen=True)
class Weights:
    """What the weights of a network are when they are computed with."""

    dtype: torch.dtype
    quantize: Quantize | None = None
    offload: bool = False
    compile: CompileMode | None = None


@dataclass(frozen=True)
class Arrangement:
    """How a batch is decoded to `size`: with these weights, in tiles or as a whole, the network's parts `chunk` patches
    at a time, the adapter's tokens kept for all steps or made in every call."""

    size: Size
    weights: Weights
    attention: KernelName = "torch"
    tiling: Tiling | None = None
    chunk: int = CHUNKS[0]
    keep_tokens: bool = True

    @property
    def seen(self) -> Size:
        """The pixels that the network sees in a call."""
        if self.tiling is None:
            return self.size
        return min(self.tiling.side, self.size[0]), min(self.tiling.side, self.size[1])

    def record(self) -> dict[str, object]:
        """What to save with an image: all that may have changed it."""
        found: dict[str, object] = {"dtype": str(self.weights.dtype).removeprefix("torch.")}
        if self.tiling is not None:
            found["tile"] = self.tiling.side
        if self.weights.quantize is not None:
            found["quantize"] = self.weights.quantize
        return found if self.attention == "torch" else {**found, "attention": self.attention}

    def smaller(self, patch: int) -> "Arrangement | None":
        """What takes less memory for the same noise and state; None if nothing does."""
        if self.chunk > CHUNKS[-1] or self.keep_tokens:
            return replace(self, chunk=CHUNKS[-1], keep_tokens=False)
        sides = (side // patch * patch for side in TILES)
        side = next((side for side in sides if 2 * patch <= side < max(self.seen)), None)
        if side is None:
            return None
        overlap = max(1, round(side / 8 / patch)) * patch
        return replace(self, tiling=Tiling(*self.size, side, overlap=overlap, patch=patch))
