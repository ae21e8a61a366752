"""Softmax attention, and the queries and keys that go into it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from pixdec.layers.norms import inverse_rms
from pixdec.layers.rope import rotate

SHORT = 256  # keys: their scores are small beside everything else that training keeps

# (q, k, v), each (B, heads, L, d) -> (B, heads, L, d).
Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ / sqrt(d)) v for (B, heads, L, d).

    PyTorch's scaled-dot-product attention, which picks a kernel that the device has. The one for bfloat16 on a CPU
    takes half as long again as its parts do on short sequences, and four times as long on the way back, so these are
    computed in parts. Others: `pixdec.inference.kernels`.
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= SHORT:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.softmax(-1).to(v.dtype) @ v
    return F.scaled_dot_product_attention(q, k, v)


def queries_keys_values(
    qkv: Tensor, heads: int, q_weight: Tensor | None, k_weight: Tensor, table: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Projections (B, L, 3·heads·d) -> q, k, v, each (B, heads, L, d); q and k with a root-mean-square norm of these
    weights (d,) and rotated by a table (2, L, d/2), in float32. `q_weight` None leaves q as it is,
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
