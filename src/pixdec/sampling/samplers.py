"""Samplers as generators: each yields its state after every step, and the caller stops, shows or keeps what it wants.

A denoiser is `denoise(x_t, t) -> velocity` with x_t (B,3,H,W) and t (B,) in [0,1]. Noise is drawn on the CPU in float32
from generators of each image's own, so that a seed gives the same image on every device and in every batch.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from pixdec.sampling.flow import clean, interpolate

Denoiser = Callable[[Tensor, Tensor], Tensor]
_PART = 2**20  # values that one generator draws at a time


@dataclass(frozen=True)
class Step:
    """One step: number `index` of `total`, from noise level `t`; `x0` (B,3,H,W) is the estimate of the clean image it
    made, clamped to [-1,1]. The last step's x0 is the result. `x` is the state after the step, where a sampler has it.
    """

    index: int
    total: int
    t: float
    x0: Tensor
    x: Tensor | None = field(default=None, kw_only=True)


class NoiseSource:
    """Standard normal noise, image by image: image i of the batch draws from its own generators, in the order of the
    calls.

    The first 2²⁰ values of an image come from one generator that all calls go on with, and every further 2²⁰ from one
    of their own, seeded by (seed, call, part): so that all cores draw a large image, and always the same. Where the
    network is not on the CPU, the noise of the next of `calls` calls is drawn while it computes.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, calls: int = 1):
        self.seeds, self.device, self.calls = seeds, device, calls
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self._drawn = 0
        self._next: tuple[tuple[int, ...], Future[Tensor]] | None = None

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """(B,…) float32 noise for the B images."""
        assert shape[0] == len(self.seeds)
        expected, drawing = self._next or (None, None)
        assert expected in (None, tuple(shape)), "all calls ask for noise of one shape"
        noise = self._draw(shape) if drawing is None else drawing.result()
        self._next = None
        if self.device.type != "cpu" and self._drawn < self.calls:
            background = ThreadPoolExecutor(1)
            self._next = tuple(shape), background.submit(self._draw, shape)
            background.shutdown(wait=False)
        return noise.to(self.device)

    def _draw(self, shape: Sequence[int]) -> Tensor:
        """The noise of the next call, on the CPU."""
        with torch.inference_mode(False):  # other threads write into it
            noise = torch.empty(tuple(shape), dtype=torch.float32, device="cpu")
        tasks = list[tuple[Tensor, torch.Generator]]()
        for seed, own, image in zip(self.seeds, self._generators, noise, strict=True):
            first, *others = image.view(-1).split(_PART)
            tasks += [(first, own), *((x, _generator(seed, self._drawn, i)) for i, x in enumerate(others))]
        self._drawn += 1
        with ThreadPoolExecutor(min(len(tasks), torch.get_num_threads())) as pool:
            for _ in pool.map(_fill, *zip(*tasks, strict=True)):
                pass
        return noise


def _fill(values: Tensor, generator: torch.Generator) -> None:
    values.normal_(generator=generator)


def _generator(seed: int, call: int, part: int) -> torch.Generator:
    """That of part number `part` after the first, of one image in one call."""
    digest = hashlib.blake2b(f"{seed} {call} {part}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest))


def student(
    denoise: Denoiser, noise: Callable[[Sequence[int]], Tensor], shape: Sequence[int], times: Sequence[float]
) -> Iterator[Step]:
    """The few-step student: x0 = x − t·v, then x = (1−t')·x0 + t'·fresh noise for the next noise level t'.

    `times` runs down to 0, e.g. `flow.STUDENT_TIMES`; `noise(shape)` gives the first noise and all fresh noise.
    Source: the multi-step sampling of DMD2 (arXiv 2405.14867).
    """
    x = noise(shape)
    total = len(times) - 1
    for i, (t, following) in enumerate(pairwise(times)):
        level = _levels(t, x)
        x0 = clean(x, denoise(x, level), level)
        yield Step(i, total, t, x0.clamp(-1, 1))
        if following > 0:
            x = interpolate(x0, noise(shape), _levels(following, x))


def euler(denoise: Denoiser, x: Tensor, times: Sequence[float]) -> Iterator[Step]:
    """Euler's method on the flow path, x ← x + (t' − t)·v, from `x` (B,3,H,W) at times[0] down to 0. Deterministic.
    Nothing is clamped."""
    for i, (t, following) in enumerate(pairwise(times)):
        velocity = denoise(x, _levels(t, x))
        x0 = x - t * velocity
        x = x + (following - t) * velocity
        yield Step(i, len(times) - 1, t, x0, x=x)


def dpm_solver(denoise: Denoiser, x: Tensor, times: Sequence[float]) -> Iterator[Step]:
    """DPM-Solver++ 2M (Lu et al. 2022, algorithm 2) on the flow path: alpha = 1−t, sigma = t, lambda = ln(alpha/sigma).

    `x` is the noise (B,3,H,W) at times[0]; `times` runs down to 0. The first step and the last are of order 1, where
    lambda has no end. Deterministic. The result is not clamped before it is yielded.
    """
    total = len(times) - 1
    previous: tuple[float, Tensor] | None = None
    for i, (t, following) in enumerate(pairwise(times)):
        level = _levels(t, x)
        x0 = clean(x, denoise(x, level), level)
        here, there = _half_log_snr(t), _half_log_snr(following)
        target = x0
        if previous is not None and math.isfinite(here) and math.isfinite(there) and math.isfinite(previous[0]):
            ratio = (here - previous[0]) / (there - here)
            target = x0 + (x0 - previous[1]) / (2 * ratio)
        previous = here, x0
        x = following / t * x + (1 - following) * -math.expm1(here - there) * target
        yield Step(i, total, t, x0 if following > 0 else x)


def _levels(t: float, x: Tensor) -> Tensor:
    """(B,) float32: one noise level for all images, whatever torch's default dtype is."""
    return torch.full((x.shape[0],), t, dtype=torch.float32, device=x.device)


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
