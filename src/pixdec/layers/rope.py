"""Rotary position tables (Su et al. 2021) for text and for image tokens, always in float32.

A table is (L, d/2) complex numbers exp(i·angle), stored as (2, L, d/2): cosine, sine. Pairs are interleaved: (x0, x1),
(x2, x3), …
"""

import torch
from torch import Tensor

IMAGE_SPAN = 16.0  # image positions run over [0, 16] at every resolution


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Rotates (…, d) by a table (2, …, d/2) that broadcasts against it, in float32; returns the dtype of `x`."""
    pairs = x.float().unflatten(-1, (-1, 2))  # (…,d/2,2)
    cosine, sine = table
    if x.device.type != "mps" and not torch.compiler.is_compiling():  # one pass instead of seven
        return torch.view_as_real(torch.view_as_complex(pairs) * torch.complex(cosine, sine)).flatten(-2).to(x.dtype)
    even, odd = pairs.unbind(-1)
    return torch.stack((even * cosine - odd * sine, even * sine + odd * cosine), -1).flatten(-2).to(x.dtype)


def text_table(length: int, width: int, theta: float, device: torch.device | None = None) -> Tensor:
    """Table (2, length, width/2) of ordinary one-dimensional positions 0, 1, 2, …"""
    frequencies = theta ** (-torch.arange(0, width, 2, device=device, dtype=torch.float32) / width)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    return torch.stack((angles.cos(), angles.sin()))


def image_table(
    rows: int,
    columns: int,
    width: int,
    *,
    reference: tuple[int, int] | None,
    device: torch.device | None = None,
) -> Tensor:
    """Table (2, rows·columns, width/2) of two-dimensional positions, angles interleaved x, y, x, y, …

    Each axis spans [0, 16] whatever its length, and its base grows with the grid beyond `reference` (rows, columns) by
    the NTK rule, theta = 10000·(grid/reference)^(a/(a−2)) with a = width/2, unless `reference` is None.
    """

    half = width / 2

    def angles(count: int, axis: int) -> Tensor:  # (count, width/4)
        growth = 1.0 if reference is None else count / reference[axis]
        theta = 10000.0 * growth ** (half / (half - 2))
        positions = torch.linspace(0, IMAGE_SPAN, count, device=device, dtype=torch.float32)
        exponents = torch.arange(0, width, 4, device=device, dtype=torch.float32) / width
        return torch.outer(positions, theta**-exponents)

    x = angles(columns, 1).expand(rows, -1, -1)  # (rows,columns,d/4)
    y = angles(rows, 0)[:, None].expand(-1, columns, -1)
    both = torch.stack((x, y), -1).flatten(2).flatten(0, 1)  # (rows·columns, d/2)
    return torch.stack((both.cos(), both.sin()))
