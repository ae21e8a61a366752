"""L2P's head (arXiv 2605.12013): a U-Net on the whole noisy image, into whose bottleneck a transformer's tokens come.

B batch · H, W image pixels · p patch · D width of the features · u unit, 2^levels pixels

No norms, no noise level, no text. Every level of the way down is a 3 x 3 convolution, whose output the way up gets
too, and a maximum over 2 x 2. Convolutions reach less than three units, so that bands of rows, each computed with three
units more on either side, are what the whole is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

PATCHES = (16, 32, 64, 128, 160)
_WIDTHS = {"_8k": 3, "_10k_a": 3, "0": 16, "0b": 32, "1": 64, "2": 128, "3": 256, "4": 512}
_LEVELS = {  # outer to inner, by the released names; 32 was not released, and lies between its neighbours
    16: ("1", "2", "3", "4"),
    32: ("0b", "1", "2", "3", "4"),
    64: ("0", "0b", "1", "2", "3", "4"),
    128: ("_8k", "0", "0b", "1", "2", "3", "4"),
    160: ("_10k_a", "0", "0b", "1", "2", "3"),
}
_BOTTLENECK, _NARROWEST = 512, 16
_HALO = 3  # units


@dataclass(frozen=True)
class DetailerSettings:
    """`patch`: 16, 32, 64, 128 or 160; `features`: width D of what comes from the transformer; `narrow`: all released
    widths are divided by this, for small models."""

    patch: int
    features: int
    narrow: int = 1

    def __post_init__(self) -> None:
        if self.patch not in PATCHES:
            raise ValueError(f"patch={self.patch}: expected one of {', '.join(map(str, PATCHES))}")
        if not 1 <= self.narrow <= _NARROWEST:
            raise ValueError(f"narrow={self.narrow}: expected 1 to {_NARROWEST}")


class Detailer(nn.Module):
    """(image (B,3,H,W), features (B,D,H/p,W/p)) -> (B,3,H,W); tensors have the released names."""

    def __init__(self, settings: DetailerSettings):
        super().__init__()
        self.settings = settings
        self.levels = _LEVELS[settings.patch]
        self.unit = 2 ** len(self.levels)
        widths = {level: max(_WIDTHS[level] // settings.narrow, 3) for level in self.levels}
        narrowest, width = _NARROWEST // settings.narrow, 3
        for level in self.levels:
            self.add_module(f"enc{level}", nn.Sequential(nn.Conv2d(width, widths[level], 3, padding=1), nn.SiLU()))
            width = widths[level]
        bottleneck = _BOTTLENECK // settings.narrow
        self.bottleneck = nn.Sequential(nn.Conv2d(width + settings.features, bottleneck, 1), nn.SiLU())
        width = bottleneck
        outer = dict(zip(self.levels[1:], self.levels, strict=False))
        for level in reversed(self.levels):
            up = max(widths[level], narrowest)
            self.add_module(
                f"up{level}", nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, up, 3, padding=1))
            )
            width = max(widths[outer.get(level, level)], narrowest)
            joined = up + widths[level]
            self.add_module(f"dec{level}", nn.Sequential(nn.Conv2d(joined, width, 3, padding=1), nn.SiLU()))
        self.out_conv = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor, features: Tensor, rows: int | None = None, *, recompute: bool = False) -> Tensor:
        """The whole image at once, or `rows` units of it at a time. `recompute`: keep nothing of a band for the way
        back but what goes in."""
        height, width = (side // self.unit for side in image.shape[2:])
        if features.shape[2:] != (height, width):  # 160 pixels are two and a half units
            features = F.interpolate(features, (height, width))
        bands: list[Tensor] = []
        for first in range(0, height, rows or height):
            last = min(first + (rows or height), height)
            top, bottom = max(first - _HALO, 0), min(last + _HALO, height)
            given = image[:, :, top * self.unit : bottom * self.unit], features[:, :, top:bottom]
            made = checkpoint(self._band, *given, use_reentrant=False) if recompute else self._band(*given)
            assert isinstance(made, Tensor)
            bands.append(made[:, :, (first - top) * self.unit : (last - top) * self.unit])
        return bands[0] if len(bands) == 1 else torch.cat(bands, 2)

    def _band(self, x: Tensor, features: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for level in self.levels:
            skips.append(self.get_submodule(f"enc{level}")(x))
            x = F.max_pool2d(skips[-1], 2)
        x = self.bottleneck(torch.cat((x, features), 1))
        for level in reversed(self.levels):
            x = self.get_submodule(f"up{level}")(x)
            x = self.get_submodule(f"dec{level}")(torch.cat((x, skips.pop()), 1))
        return self.out_conv(x)
