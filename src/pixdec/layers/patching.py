"""Images <-> patches. Patch tokens run row by row; inside a patch the order is (channel, row, column) or pixel by
pixel."""

from torch import Tensor
from torch.nn import functional as F


def patch_vectors(images: Tensor, patch: int) -> Tensor:
    """(B,C,H,W) -> (B, L, C·p²), each vector in (channel, row, column) order."""
    return F.pixel_unshuffle(images, patch).flatten(2).transpose(1, 2).contiguous()


def patch_pixels(vectors: Tensor, patch: int) -> Tensor:
    """Patch vectors (B, L, C·p²) -> (B, L, p², C): the pixels of each patch, row by row.

    Contiguous, for on other strides every Linear over the pixels becomes one small product for each patch.
    """
    return vectors.unflatten(-1, (-1, patch * patch)).transpose(-1, -2).contiguous()


def pixels_to_image(pixels: Tensor, rows: int, columns: int) -> Tensor:
    """(B, rows·columns, p², C) -> (B,C,rows·p,columns·p): the inverse of `patch_pixels`."""
    patch = round(pixels.shape[2] ** 0.5)
    return F.pixel_shuffle(pixels.permute(0, 3, 2, 1).flatten(1, 2).unflatten(2, (rows, columns)), patch)
