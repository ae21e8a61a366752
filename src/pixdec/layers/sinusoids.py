"""Sinusoids: of the noise level, and of pixel positions."""

import math
from functools import lru_cache

import torch
from torch import Tensor


def time_sinusoid(t: Tensor, width: int = 256, max_period: float = 10.0) -> Tensor:
    """Noise levels (B,) in [0,1] -> (B, width), [cos, sin] of 1000·t at frequencies max_period^(−i/(width/2)), float32.

    The released PixelDiT uses a maximal period of 10 where diffusion models commonly use 10 000. Angles reach 1000 rad,
    so the last bit of a frequency shows in the output: the exponent is rounded to float32 as in the original, but the
    exponential is taken in float64 on the CPU, which makes the table the same on every device.
    """
    angles = (1000.0 * t).float()[:, None] * _frequencies(width, max_period, t.device)
    return torch.cat((angles.cos(), angles.sin()), -1)


@lru_cache(maxsize=16)
def _frequencies(width: int, max_period: float, device: torch.device) -> Tensor:
    """Kept, for a call of the network that is replayed as a graph cannot bring it from the CPU."""
    half = width // 2
    with torch.inference_mode(False):  # so that training can use it too
        exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32, device="cpu") / half
        return exponents.double().exp().float().to(device)


def pixel_rows(first: int, count: int, channels: int, device: torch.device | None = None) -> Tensor:
    """Fixed position table (count, channels/2), float32, of `count` places along one axis from `first` on: [sin, cos]
    of position · 10000^(−i/(channels/4))."""
    quarter = channels // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64, device="cpu") / quarter)
    # Made on the CPU: not every device has float64.
    angles = torch.outer(torch.arange(first, first + count, dtype=torch.float64, device="cpu"), frequencies)
    return torch.cat((angles.sin(), angles.cos()), -1).float().to(device)
