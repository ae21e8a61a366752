"""Root-mean-square norm and the modulation that follows it."""

import torch
from torch import Tensor, nn

EPSILON = 1e-6


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + 1e-6) · weight over the last axis, computed in float32 whatever the dtype of the weights."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * inverse_rms(x) * self.weight.float()).to(x.dtype)


def inverse_rms(x: Tensor) -> Tensor:
    """1 / sqrt(mean(x²) + 1e-6) over the last axis, (…,n) -> (…,1), float32."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
    return (length.square() / x.shape[-1] + EPSILON).rsqrt()


def modulated_norm(x: Tensor, gain: Tensor, shift: Tensor) -> Tensor:
    """x / rms(x) · gain + shift: a norm of weight w, modulated, where gain = w·(1 + scale)."""
    return torch.addcmul(shift, (x.float() * inverse_rms(x)).to(x.dtype), gain)
