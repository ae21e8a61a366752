"""Decoded images in the form that was asked for."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pixdec.io.images import to_pil


def in_form(x0: Tensor, output: Literal["pil", "pt", "np"]) -> Sequence[Any]:
    """Decoded images (B,3,H,W) in [-1,1], one by one: PIL images, or tensors (3,H,W) or arrays (H,W,3) in [0,1]."""
    if output == "pil":
        return to_pil(x0)
    images = (x0 + 1).div_(2)
    return list(images if output == "pt" else images.permute(0, 2, 3, 1).cpu().numpy())


def stacked(images: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """Tensors or arrays, so many of one shape after each other -> one batch of each of these."""
    ends = list(accumulate(counts))
    groups = [images[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return [
        group[0][None]  # large images come alone, and are not copied
        if len(group) == 1
        else (torch.stack if isinstance(group[0], Tensor) else np.stack)(list(group))
        for group in groups
    ]
