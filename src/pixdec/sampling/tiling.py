"""Velocity tiling: each network call runs in overlapping tiles, while noise and state stay whole.

The noise, the state x_t and the sampler's arithmetic never see the tiles, so a seed gives the same noise as without
them, and neighbouring tiles start every step from the same pixels in their overlap: there is no seam to blend away,
only velocities that differ a little, which are averaged with weights that fall towards each tile's border. Peak memory
of a call is one tile's, whatever the size of the image.

B batch · H, W output pixels · p patch side
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tile:
    """A rectangle of output pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, images: Tensor) -> Tensor:
        """The part (B,C,height,width) of images (B,C,H,W)."""
        return images[:, :, self.top : self.top + self.height, self.left : self.left + self.width]


@dataclass(frozen=True)
class Tiling:
    """Tiles of `side` pixels that overlap by at least `overlap` over an image of height x width. All three are
    multiples of the patch side.

    Along an axis the tiles lie evenly, so that every overlap is about as wide, on multiples of the patch side, but
    for the last, which ends where the image ends; an image smaller than a tile is one tile along that axis.
    """

    height: int
    width: int
    side: int
    overlap: int
    patch: int

    def __post_init__(self):
        for name in ("height", "width", "side", "overlap"):
            value = getattr(self, name)
            if value % self.patch or value <= 0:
                raise ValueError(f"{name}={value}: expected a positive multiple of the patch side {self.patch}")
        if self.overlap > self.side // 2:
            raise ValueError(f"overlap={self.overlap}: expected at most half of the tile's side {self.side}")

    def __iter__(self) -> Iterator[Tile]:
        for top in self._starts(self.height):
            for left in self._starts(self.width):
                yield Tile(top, left, min(self.side, self.height), min(self.side, self.width))

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        reach, last = self.side - self.overlap, length - self.side
        for gaps in itertools.count(math.ceil(last / reach)):
            starts = [i * last // gaps // self.patch * self.patch for i in range(gaps)] + [last]
            if all(after - before <= reach for before, after in itertools.pairwise(starts)):
                return starts
        raise AssertionError("tiles a step apart overlap enough")

    def weight(self, tile: Tile, device: torch.device) -> Tensor:
        """(tile height, tile width) float32: how much a tile's velocity counts. Rises as sin² over the overlap from
        each side at which another tile continues; positive everywhere."""
        down = self._ramp(tile.top, tile.height, self.height, device)
        across = self._ramp(tile.left, tile.width, self.width, device)
        return down[:, None] * across

    def _ramp(self, start: int, length: int, whole: int, device: torch.device) -> Tensor:
        place = (torch.arange(length, dtype=torch.float32, device=device) + 0.5) / self.overlap
        rise = (place.clamp(max=1) * (math.pi / 2)).sin().square()
        ramp = torch.ones(length, dtype=torch.float32, device=device)
        if start > 0:
            ramp = torch.minimum(ramp, rise)
        if start + length < whole:
            ramp = torch.minimum(ramp, rise.flip(0))
        return ramp


class Croppable(Protocol):
    """What a network made of a latent, and of which it can be given a part: `pixdec.models.pid.Condition`."""

    def crop(self, top: int, left: int, height: int, width: int, patch: int) -> Self:
        """What belongs to a rectangle of output pixels."""
        ...


C = TypeVar("C", bound=Croppable)


def tiled_velocity(velocity: Callable[[Tensor, C], Tensor], x_t: Tensor, condition: C, tiling: Tiling) -> Tensor:
    """v = Σ w_i v_i / Σ w_i over tiles i, v_i = velocity(x_t in tile i, condition in tile i).

    x_t (B,3,H,W) -> (B,3,H,W) float32. The tiles' positions are their own, as in an image of a tile's size.
    """
    total = torch.zeros_like(x_t, dtype=torch.float32)
    weights = torch.zeros(x_t.shape[-2:], dtype=torch.float32, device=x_t.device)
    for tile in tiling:
        cropped = condition.crop(tile.top, tile.left, tile.height, tile.width, tiling.patch)
        weight = tiling.weight(tile, x_t.device)
        tile.of(total).addcmul_(velocity(tile.of(x_t), cropped).float(), weight)
        tile.of(weights[None, None])[0, 0].add_(weight)
    return total.div_(weights)
