"""Any size: how a latent is padded to what the network takes, how its image is cut and resampled to what was asked for,
and when an image is decoded in tiles.

Sizes are (height, width) in pixels. B batch · C channels · h, w latent grid · H, W output pixels · p patch side
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pixdec.io.images import resize
from pixdec.sampling.tiling import Tiling
from pixdec.weights.catalog import Sizes

Size = tuple[int, int]

TILE = 2048  # pixels a side: every released model has learnt squares of this size
WHOLE = 4096 * 4096  # pixels in all: the largest trained size, and the bound of networks that know no limit


@dataclass(frozen=True)
class Frame:
    """Where an image lies in what the network puts out: `size` at the top left of `whole`, for which a latent is given
    more cells on the right and below.

    Both are the same but for networks whose patch does not divide a latent cell's output.
    """

    size: Size
    whole: Size
    cells: Size  # rows and columns of the latent that the network is given

    @classmethod
    def of(cls, rows: int, columns: int, side: int, patch: int) -> "Frame":
        """For a latent of rows x columns cells, each `side` output pixels a side, and patches of `patch` pixels."""
        together = patch // math.gcd(patch, side)  # the fewest cells that make whole patches
        down, across = (-(-count // together) * together for count in (rows, columns))
        return cls((rows * side, columns * side), (down * side, across * side), (down, across))

    def pad(self, latent: Tensor) -> Tensor:
        """(B,C,h,w) -> (B,C,*cells): the last row and column repeated."""
        for axis, wanted in zip((2, 3), self.cells, strict=True):
            if latent.shape[axis] < wanted:
                places = torch.arange(wanted, device=latent.device).clamp(max=latent.shape[axis] - 1)
                latent = latent.index_select(axis, places)
        return latent

    def crop(self, images: Tensor) -> Tensor:
        """What the network put out (B,3,*whole) -> the image (B,3,*size)."""
        return images[..., : self.size[0], : self.size[1]]


def scaled(size: Size, scale: float) -> Size:
    """A size `scale` times as large: each side rounded, at least 1."""
    height, width = (max(1, round(side * scale)) for side in size)
    return height, width


def has_shape_of(size: Size, image: Size) -> bool:
    """Whether one factor takes both sides of `image` to those of `size`, each rounded up or down at will."""
    low = max((wanted - 1) / side for wanted, side in zip(size, image, strict=True))
    high = min((wanted + 1) / side for wanted, side in zip(size, image, strict=True))
    return min(size) > 0 and low < high


def nearest(size: Size, image: Size) -> tuple[Size, Size]:
    """The sizes with the shape of `image` that have the height, and the width, of `size`."""
    (height, width), (h, w) = size, image
    return (height, max(1, round(height * w / h))), (max(1, round(width * h / w)), width)


def check_size(size: Size, image: Size) -> None:
    """ValueError, in one line, for a size that an image of size `image` would have to be distorted for."""
    if not has_shape_of(size, image):
        same_height, same_width = nearest(size, image)
        raise ValueError(
            f"size={size}: this latent decodes to (height, width) = {image}, which has another shape; "
            f"ask for {same_height} or {same_width} and crop the image, or leave size out"
        )


def fit(images: Tensor, size: Size) -> Tensor:
    """Decoded images (B,3,H,W) in [-1,1] -> (B,3,*size) in [-1,1], float32; as they are if they have that size.

    Antialiased bicubic (`images.resize`), on the images' device, of the sRGB values themselves, as decoders have learnt
    from images shrunk so. Measured on four Kodak images decoded four times larger and shrunk to 1.5, 2 and 3 times as
    large (nano, 4 steps): Lanczos is within 0.05 dB of it and has 3 % more gradient, resampling linear light is within
    0.03 dB. Sharp edges overshoot: values beyond [-1,1] are clamped.
    """
    if images.shape[-2:] == size:
        return images
    return resize(images.float(), *size, how="bicubic").clamp_(-1, 1)


def tiling_for(size: Size, side: int | None, sizes: Sizes | None, patch: int) -> Tiling | None:
    """The tiles of an output of that size, of `side` pixels a side; None to decode it as a whole. With `side` None, as
    `tile_side` says for the trained `sizes`. They start where patches do, or every `step` pixels.

    ValueError for tiles that cannot overlap by whole patches.
    """
    if side is None:
        side = tile_side(*size, sizes, patch)
    else:
        check_tile(side, patch)
    if side is None or max(size) <= side:
        return None
    return Tiling(*size, side, overlap=max(1, round(side / 8 / patch)) * patch, patch=patch)


def tile_side(height: int, width: int, sizes: Sizes | None, patch: int) -> int | None:
    """The side of the tiles that an output is decoded in; None to decode it as a whole. A tile never leaves the image.

    As a whole: up to the largest area and the longest side that the network was trained on (`sizes`), or up to
    4096 x 4096 pixels for a network that knows no limit. Beyond, tiles of 2048 x 2048; where the image is narrower than
    that, longer ones of a trained area and aspect. A narrow image of a trained area that has no such tile stays whole.
    """
    square, area = TILE // patch * patch, height * width
    if sizes is None:
        return None if area <= WHOLE else square
    short, long = sorted((height, width))
    if area <= sizes.largest and long <= math.sqrt(sizes.largest * sizes.aspect):
        return None
    side = square if short >= TILE else min(long, TILE * TILE // short, int(short * sizes.aspect)) // patch * patch
    if side > 0 and sizes.warning("", min(short, side), side) is None:
        return side
    return square if area > sizes.largest else None


def check_tile(side: int, patch: int) -> None:
    """ValueError for a tile that cannot overlap its neighbours by whole patches."""
    if side < 2 * patch or side % patch:
        near = max(2, round(side / patch)) * patch
        raise ValueError(f"tile={side}: expected a multiple of {patch} pixels, at least {2 * patch}; take {near}")
