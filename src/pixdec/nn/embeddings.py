"""Sinusoids: of the noise level, and of pixel positions."""

import math

import torch
from torch import Tensor


def time_sinusoid(t: Tensor, width: int = 256, max_period: float = 10.0) -> Tensor:
    """Noise levels (B,) in [0,1] -> (B, width), [cos, sin] of 1000·t at frequencies max_period^(−i/(width/2)), float32.

    The released PixelDiT uses a maximal period of 10 where diffusion models commonly use 10 000. Angles reach 1000 rad,
    so the last bit of a frequency shows in the output: the exponent is rounded to float32 as in the original, but the
    exponential is taken in float64 on the CPU, which makes the table the same on every device.
    """
    half = width // 2
    exponents = -math.log(max_period) * torch.arange(half, dtype=torch.float32) / half
    frequencies = exponents.double().exp().float().to(t.device)
    angles = (1000.0 * t).float()[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), -1)


def pixel_table(height: int, width: int, channels: int, device: torch.device | None = None, *, top: int = 0) -> Tensor:
    """Fixed position table (channels, height, width), float32, of the rows from `top` on: the first half of the
    channels from x, the second from y, each [sin, cos] of position · 10000^(−i/(channels/4))."""
    quarter = channels // 4
    frequencies = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)

    def encode(first: int, count: int) -> Tensor:  # (channels/2, count), made on the CPU: not every device has float64
        angles = torch.outer(frequencies, torch.arange(first, first + count, dtype=torch.float64))
        return torch.cat((angles.sin(), angles.cos())).float().to(device)

    x = encode(0, width)[:, None, :].expand(-1, height, -1)
    y = encode(top, height)[:, :, None].expand(-1, -1, width)
    return torch.cat((x, y))
