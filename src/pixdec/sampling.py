"""Samplers as generators: each yields its state after every step, and the caller stops, shows or keeps what it wants.

A denoiser is `denoise(x_t, t) -> velocity` with x_t (B,3,H,W) and t (B,) in [0,1]. Noise is drawn on the CPU in float32
from one generator for each image, so that a seed gives the same image on every device and in every batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pixdec.flow import clean, interpolate

Denoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One step: number `index` of `total`, from noise level `t`; `x0` (B,3,H,W) is the estimate of the clean image it
    made, clamped to [-1,1]. The last step's x0 is the result."""

    index: int
    total: int
    t: float
    x0: Tensor


class NoiseSource:
    """Standard normal noise, image by image: image i of the batch draws from its own generator, in the order of the
    calls."""

    def __init__(self, seeds: Sequence[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.device = device

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """(B,…) float32 noise, one generator for each of the B images."""
        assert shape[0] == len(self.generators)
        each = [torch.randn(tuple(shape[1:]), generator=generator) for generator in self.generators]
        return torch.stack(each).to(self.device)


def student(
    denoise: Denoiser, noise: Callable[[Sequence[int]], Tensor], shape: Sequence[int], times: Sequence[float]
) -> Iterator[Step]:
    """The few-step student: x0 = x − t·v, then x = (1−t')·x0 + t'·fresh noise for the next noise level t'.

    `times` runs down to 0, e.g. `flow.STUDENT_TIMES`; `noise(shape)` gives the first noise and all fresh noise.
    Source: specification §6 (DMD2's multi-step sampling, Yin et al. 2024).
    """
    x = noise(shape)
    total = len(times) - 1
    for i, (t, following) in enumerate(pairwise(times)):
        level = torch.full((shape[0],), t, device=x.device)
        x0 = clean(x, denoise(x, level), level)
        yield Step(i, total, t, x0.clamp(-1, 1))
        if following > 0:
            x = interpolate(x0, noise(shape), torch.full((shape[0],), following, device=x.device))


def dpm_solver(denoise: Denoiser, x: Tensor, times: Sequence[float]) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) on the flow path: alpha = 1−t, sigma = t, lambda = ln(alpha/sigma).

    `x` is the noise (B,3,H,W) at times[0]; `times` runs down to 0. The first step and the last are of order 1, where
    lambda has no end. Deterministic. The result is not clamped before it is yielded.
    """
    total = len(times) - 1
    previous: tuple[float, Tensor] | None = None
    for i, (t, following) in enumerate(pairwise(times)):
        level = torch.full((x.shape[0],), t, device=x.device)
        x0 = clean(x, denoise(x, level), level)
        here, there = _half_log_snr(t), _half_log_snr(following)
        target = x0
        if previous is not None and math.isfinite(here) and math.isfinite(there) and math.isfinite(previous[0]):
            ratio = (here - previous[0]) / (there - here)
            target = x0 + (x0 - previous[1]) / (2 * ratio)
        previous = here, x0
        x = following / t * x + (1 - following) * -math.expm1(here - there) * target
        yield Step(i, total, t, x0 if following > 0 else x)


def _half_log_snr(t: float) -> float:
    if t <= 0:
        return math.inf
    return math.log1p(-t) - math.log(t) if t < 1 else -math.inf


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance: v_u + g·(v_c − v_u); scale 1 costs one call."""
    if scale == 1:
        return conditional

    def denoise(x_t: Tensor, t: Tensor) -> Tensor:
        without = unconditional(x_t, t)
        return without + scale * (conditional(x_t, t) - without)

    return denoise
