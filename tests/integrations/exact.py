"""Exact models that stand in for a denoiser, so that what a run holds can be foretold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import Case, denoiser
from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]


def preserving(held: Tensor, sigma: float | Tensor) -> Tensor:
    """z + s·noise, as Euler's scheduler has it → its variance-preserving form."""
    return held / math.sqrt(float(sigma) ** 2 + 1)


def preserving_level(sigma: float | Tensor) -> float:
    return float(sigma) / math.sqrt(float(sigma) ** 2 + 1)


def stand_in(monkeypatch: pytest.MonkeyPatch, pipe: Any, case: Case, velocity: Velocity) -> None:
    """The denoiser's forward becomes `velocity(x, sigma)`, in the form in which the pipeline asks it.

    Flow: x = (1 − sigma)·z + sigma·noise, velocity = noise − z. SDXL: x = z + sigma·noise, velocity = noise.
    """

    def transformer(hidden_states: Any = None, timestep: Any = None, *_: Any, **__: Any) -> Any:
        if isinstance(hidden_states, list):  # Z-Image: images as a list, 1 − sigma, and minus the velocity
            sigma = 1 - float(timestep[0])
            return ([-velocity(x.squeeze(1), sigma).reshape(x.shape) for x in hidden_states],)
        sigma = float(timestep[0]) / (1000 if case.space == "sd3" else 1)
        return (velocity(hidden_states, sigma),)

    def unet(sample: Tensor, timestep: Tensor, *_: Any, **__: Any) -> Any:
        """Whatever frame the scheduler keeps, the model is given the variance-preserving one."""
        sigma = euler_sigma(pipe.scheduler, float(timestep))
        return (velocity(sample * math.sqrt(sigma**2 + 1), sigma),)

    monkeypatch.setattr(denoiser(pipe), "forward", unet if case.space == "sdxl" else transformer)


def euler_sigma(scheduler: Any, timestep: float) -> float:
    """sqrt((1 − ᾱ)/ᾱ) at a time step, between two by the logarithm."""
    cumulative = scheduler.alphas_cumprod.double()
    logs = ((1 - cumulative) / cumulative).sqrt().log()
    low = min(int(timestep), len(logs) - 2)
    return math.exp(float(torch.lerp(logs[low], logs[low + 1], timestep - low)))


def gaussian(spread: float, *, flow: bool) -> Velocity:
    """The best prediction for z of variance spread² and no mean.

    Flow: E[noise − z | x] = x·(s − (1−s)·spread²)/((1−s)²·spread² + s²); SDXL: E[noise | x] = x·s/(spread² + s²).
    """

    def velocity(x: Tensor, sigma: float) -> Tensor:
        if not flow:
            return x * (sigma / (spread**2 + sigma**2))
        kept = 1 - sigma
        return x * ((sigma - kept * spread**2) / (kept**2 * spread**2 + sigma**2))

    return velocity
