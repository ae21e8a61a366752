"""The flow-matching path between images and noise: pure functions.

x_t = (1−t)·x0 + t·eps, t = 1 is noise; velocity v = eps − x0 (PiD, arXiv 2605.23902, eq. 8, in the sign and direction
of the released checkpoints). Noise levels t are float tensors (B,) or floats in [0,1].
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

STUDENT_TIMES = (0.999, 0.866, 0.634, 0.342, 0.0)
_SHIFTS = {"v1": (4.0, 1024.0), "v1.5": (6.0, 2048.0)}  # at the reference side, and that side in pixels


AT_ONCE = 2**18  # values of an image that are held in float64


def expand(t: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B,1,…,1) with as many axes as `like`."""
    return t.reshape(-1, *([1] * (like.ndim - 1)))


def interpolate(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1−t)·x0 + t·noise, for x0 and noise (B,…), t (B,)."""
    t = expand(t, x0).to(x0.dtype)
    return (1 - t) * x0 + t * noise


def velocity_of(x0: Tensor, noise: Tensor) -> Tensor:
    """The velocity that the network learns, noise − x0."""
    return noise - x0


def clean(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """x0 = x_t − t·v, in float64 and cast back to float32 (devices without float64: float32, 4.8e-7 off for each
    call). In parts, for float64 copies of a large image would take more memory than a call of a network on it."""
    precise = torch.float32 if x_t.device.type == "mps" else torch.float64
    level = expand(t, x_t.flatten(1)).to(precise)
    parts = zip(x_t.flatten(1).split(AT_ONCE, 1), velocity.flatten(1).split(AT_ONCE, 1), strict=True)
    made = (torch.addcmul(x.to(precise), v.to(precise), level, value=-1).float() for x, v in parts)
    if torch.is_grad_enabled():
        return torch.cat(list(made), 1).view(x_t.shape)
    x0 = torch.empty_like(x_t, dtype=torch.float32, memory_format=torch.contiguous_format)
    for place, part in zip(x0.view(x0.shape[0], -1).split(AT_ONCE, 1), made, strict=True):
        place.copy_(part)
    return x0


def shift(u: float, factor: float) -> float:
    """Moves a noise level towards 1: s·u / (1 + (s−1)·u) (Esser et al. 2024, eq. 23)."""
    return factor * u / (1 + (factor - 1) * u)


def resolution_shift(height: int, width: int, version: str) -> float:
    """Shift for an image size: v1 4·sqrt(sqrt(HW)/1024), v1.5 6·sqrt(sqrt(HW)/2048). ValueError for another version."""
    if version not in _SHIFTS:
        raise ValueError(
            f"version {version!r} has no shift of noise levels by image size; expected {' or '.join(_SHIFTS)}"
        )
    factor, reference = _SHIFTS[version]
    return factor * math.sqrt(math.sqrt(height * width) / reference)


def student_times(times: Sequence[float], steps: int) -> list[float]:
    """The list of a few-step decoder that takes fewer steps than its own N = len(times) − 1: entries
    round(linspace(0, N, steps+1)).

    Raises:
        ValueError: `steps` is less than 1, or more than N, at whose noise levels alone the network was trained.
    """
    trained = len(times) - 1
    if not 1 <= steps <= trained:
        raise ValueError(f"steps={steps}: this decoder takes 1 to {trained} steps")
    return [times[round(i * trained / steps)] for i in range(steps + 1)]


def shifted_times(steps: int, factor: float, start: float = 1.0) -> list[float]:
    """Noise levels from `start` to 0 in `steps` steps, evenly spaced, then shifted."""
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1")
    return [shift(start * (1 - i / steps), factor) for i in range(steps + 1)]
