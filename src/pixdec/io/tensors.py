"""Images as tensors: to and from PIL, padding, resizing, and what lies under transparency.

PIL images are RGB, 8 bit, sRGB. Tensors are (B, 3, H, W) in [-1, 1]; B batch, H,W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

_BAND = 2**22  # pixels of an image that are converted at a time


def to_tensor(images: Image.Image | Sequence[Image.Image]) -> Tensor:
    """RGB images of one size → (B, 3, H, W) float32 in [-1, 1]: value / 127.5 - 1.

    Raises:
        ValueError: no image, not RGB, or of several sizes.
    """
    batch = [images] if isinstance(images, Image.Image) else list(images)
    if not batch:
        raise ValueError("no images; expected one or more of the same size")
    for image in batch:
        if image.mode != "RGB":
            raise ValueError(f"image of mode {image.mode}; expected RGB: convert it with image.convert('RGB')")
        if image.size != batch[0].size:
            sizes = " and ".join(f"{width}x{height}" for width, height in (batch[0].size, image.size))
            raise ValueError(f"images of {sizes} pixels; a batch has one size")
    values = np.stack([np.asarray(image) for image in batch])  # (B,H,W,3)
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous().float().div_(127.5).sub_(1)


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 3, H, W) → B images: round((x + 1) · 127.5), with values outside [-1, 1] clamped to it.

    Raises:
        ValueError: another shape, or NaN or infinite values.
    """
    _check_images(images)
    return [_picture(image) for image in images.detach()]


def _picture(image: Tensor) -> Image.Image:
    """(3,H,W) → an image, some rows at a time: whole float copies of a large one would take gigabytes."""
    height, width = image.shape[1:]
    picture, rows = Image.new("RGB", (width, height)), max(1, _BAND // width)
    for top in range(0, height, rows):
        band = image[:, top : top + rows]
        if not bool(band.isfinite().all()):
            raise ValueError(f"images of shape {tuple(image.shape)} hold NaN or infinite values; nothing can show them")
        values = band.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)
        picture.paste(Image.fromarray(values.permute(1, 2, 0).contiguous().cpu().numpy()), (0, top))
    return picture


def over_white(colors: Tensor, alpha: Tensor) -> Tensor:
    """Colors (B, 3, H, W) in [-1, 1], of opacity (B, 1, H, W) in [0, 1], on a white ground."""
    return 1 + (colors - 1) * alpha


def filled(colors: Tensor, alpha: Tensor) -> Tensor:
    """Colors (B, 3, H, W) whose wholly transparent pixels take the colors around them.

    What a file holds there is arbitrary, mostly black or white, and a network would mix it into the edges of what is
    seen. Averages of the visible pixels over ever larger squares fill the rest.
    """
    visible = alpha > 0
    if bool(visible.all()) or max(colors.shape[2:]) == 1:
        return colors
    padding = (0, colors.shape[3] % 2, 0, colors.shape[2] % 2)
    weights = F.avg_pool2d(F.pad(visible.float(), padding), 2)
    sums = F.avg_pool2d(F.pad(colors * visible, padding), 2)
    coarse = filled(sums / weights.clamp(min=0.25), weights)
    around = F.interpolate(coarse, scale_factor=2)[..., : colors.shape[2], : colors.shape[3]]
    return torch.where(visible, colors, around)


def pad_to_multiple(images: Tensor, factor: int) -> Tensor:
    """Extend (B, 3, H, W) on the right and below, until both sides are multiples of `factor`: what encoders ask for.

    By reflection, so that the border looks like more of the image; where a side is too short to reflect that much, by
    repeating its last pixels. Of an image that is decoded `scale` times larger, [..., : H·scale, : W·scale] is wanted.
    """
    bottom, right = -images.shape[2] % factor, -images.shape[3] % factor
    images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < images.shape[3] else "replicate")
    return F.pad(images, (0, 0, 0, bottom), mode="reflect" if bottom < images.shape[2] else "replicate")


def resize(images: Tensor, height: int, width: int, *, how: Literal["bicubic", "lanczos"] = "bicubic") -> Tensor:
    """Resize (B, 3, H, W) → (B, 3, height, width), antialiased, in float32; device and dtype are kept.

    Sharp edges overshoot: the result may leave [-1, 1] a little, and is not clamped.

    "bicubic" is Keys' kernel with a = -1/2, on the images' device; "lanczos" has three lobes and runs on the CPU. Both
    agree with Pillow's filters of those names, without its rounding to 8 bits.

    Raises:
        ValueError: another shape, a side below 1, or another `how`.
    """
    _check_images(images)
    if height < 1 or width < 1:
        raise ValueError(f"size {height}x{width}: both sides must be at least 1")
    if how == "bicubic":
        source = images.float().cpu() if images.device.type == "mps" else images.float()  # which has no such kernel
        resized = F.interpolate(source, (height, width), mode="bicubic", antialias=True, align_corners=False)
        return resized.to(images.device, images.dtype)
    if how == "lanczos":
        resized = [_lanczos(plane, height, width) for plane in images.detach().float().cpu().flatten(0, 1)]
        return torch.stack(resized).view(*images.shape[:2], height, width).to(images.device, images.dtype)
    raise ValueError(f"how={how!r}; expected 'bicubic' or 'lanczos'")


def _lanczos(plane: Tensor, height: int, width: int) -> Tensor:  # (H,W) → (height,width)
    resized = Image.fromarray(plane.numpy()).resize((width, height), Image.Resampling.LANCZOS)  # mode F: float32
    return torch.from_numpy(np.array(resized))


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or images.numel() == 0:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (B, 3, H, W), none of them 0")
