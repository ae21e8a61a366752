"""Softmax attention, the queries and keys that go into it, and the splitting of an image's tokens into windows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pixdec.layers.norms import inverse_rms
from pixdec.layers.rope import rotate

SHORT = 256  # keys: their scores are small beside everything else that training keeps

# (q, k, v, mask), each (B, heads, L, d), `mask` as for `attention` or None -> (B, heads, L, d).
Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v for (B, heads, L, d); `mask` (broadcastable to (B, heads, Lq, Lk)) is True where a key
    counts.

    PyTorch's scaled-dot-product attention, which picks a kernel that the device has. The one for bfloat16 on a CPU
    takes half as long again as its parts do on short sequences, and four times as long on the way back, so these are
    computed in parts. Others: `pixdec.inference.kernels`.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        scores = scores if mask is None else scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def queries_keys_values(
    qkv: Tensor, heads: int, q_weight: Tensor | None, k_weight: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Projections (B, L, 3·heads·d) -> q, k, v, each (B, heads, L, d); q and k with a root-mean-square norm of these
    weights (d,) and rotated by a table (2, L, d/2), or (2, B, L, d/2), in float32. `q_weight` None leaves q as it is,
    where nobody reads it."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).unbind(-3)  # (B,L,heads,d)

    def placed(x: Tensor, weight: Tensor) -> Tensor:
        return rotate(x.float() * inverse_rms(x) * weight.float(), table[..., None, :]).to(x.dtype).transpose(1, 2)

    return q.transpose(1, 2) if q_weight is None else placed(q, q_weight), placed(k, k_weight), v.transpose(1, 2)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, L, heads·d) -> (B, heads, L, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, L, d) -> (B, L, heads·d)."""
    return x.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Windows:
    """Square windows of `side` tokens over a grid of `rows` x `columns` tokens, the first of them displaced by `top`
    rows up and `left` columns to the left.

    Attention inside windows costs in proportion to the image, not to its square; blocks alternate displacements of 0
    and side/2 so that neighbours meet (Liu et al. 2021, Swin). Windows that stick out of the grid are filled with
    tokens that `mask` hides.
    """

    rows: int
    columns: int
    side: int
    top: int
    left: int

    @property
    def _padding(self) -> tuple[int, int, int, int]:
        """left, right, top, bottom"""
        right = -(self.columns + self.left) % self.side
        bottom = -(self.rows + self.top) % self.side
        return self.left, right, self.top, bottom

    @property
    def _counts(self) -> tuple[int, int]:
        left, right, top, bottom = self._padding
        return (self.rows + top + bottom) // self.side, (self.columns + left + right) // self.side

    @property
    def count(self) -> int:
        """Windows in one image."""
        down, across = self._counts
        return down * across

    def bands(self, tokens: int) -> Iterator[tuple[slice, "Windows"]]:
        """The grid cut between rows of windows into bands of at most `tokens` tokens, but one row of windows at least:
        where a band's tokens lie among all, and the windows inside it."""
        height = max(1, tokens // (self.columns * self.side)) * self.side
        for start in range(-self.top, self.rows, height):
            first, last = max(0, start), min(self.rows, start + height)
            windows = Windows(last - first, self.columns, self.side, first - start, self.left)
            yield slice(first * self.columns, last * self.columns), windows

    def split(self, x: Tensor) -> Tensor:
        """(B, rows·columns, n) -> (B·windows, side², n)."""
        down, across = self._counts
        x = x.unflatten(1, (self.rows, self.columns))
        x = F.pad(x, (0, 0, *self._padding)) if any(self._padding) else x
        x = x.unflatten(2, (across, self.side)).unflatten(1, (down, self.side))  # (B,down,side,across,side,n)
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def join(self, x: Tensor) -> Tensor:
        """The inverse of `split`."""
        down, across = self._counts
        x = x.unflatten(0, (-1, down, across)).unflatten(3, (self.side, self.side)).transpose(2, 3)
        x = x.flatten(3, 4).flatten(1, 2)  # (B,down·side,across·side,n)
        return x[:, self.top : self.top + self.rows, self.left : self.left + self.columns].flatten(1, 2)

    def mask(self, batch: int, device: torch.device) -> Tensor | None:
        """(B·windows, 1, 1, side²), True where a token is real; None where all are."""
        if not any(self._padding):
            return None
        real = torch.ones(batch, self.rows * self.columns, 1, dtype=torch.bool, device=device)
        return self.split(real)[..., 0][:, None, None]
