"""The training loop, as a generator: it yields after every step; the caller logs, saves, shows and stops.

Every step's examples and noise follow from (seed, step) alone, so a run that stops at any moment and resumes from its
last checkpoint takes the same trajectory as one that never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from torch import Tensor, nn

from pixdec.io.arguments import check_range
from pixdec.train.parallel import average_gradients, norm_of, synchronizing

if TYPE_CHECKING:
    from pixdec.train.checkpoints import State

MOST_SKIPPED = 20  # steps in a row, after which a run that may skip stops after all

Losses = Callable[[int, int], Mapping[str, Tensor]]  # (step, part) -> named scalars, "total" among them


@dataclass(frozen=True)
class LoopSettings:
    """Optimisation of one run.

    Attributes:
        steps: of the optimizers.
        batch: images of one step, of all processes together.
        parts: passes that a process makes for one step, one after the other (gradient accumulation).
        learning_rate: rises linearly over `warmup` steps, stays, and falls to zero along a half cosine over the last
            `decay` of the steps.
        clip: largest norm of each network's gradient.
        nonfinite: what becomes of a step whose gradient is not finite: "stop" the run, or "skip" the step.
    """

    steps: int
    batch: int
    parts: int = 1
    learning_rate: float = 1e-3
    warmup: int = 50
    decay: float = 0.5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0
    seed: int = 0
    nonfinite: Literal["stop", "skip"] = "stop"

    def __post_init__(self) -> None:
        check_range(self, ("steps", "batch", "parts"), 1)
        if self.batch % self.parts:
            raise ValueError(f"batch={self.batch}, parts={self.parts}: expected a number of parts that divides it")


@dataclass(frozen=True)
class Progress:
    """What one step did. `losses` are plain floats, "total" among them, means over the parts of this process that have
    them; `gradient_norm` is that of the first network that learnt, before clipping."""

    step: int
    losses: Mapping[str, float]
    gradient_norm: float
    learning_rate: float
    skipped: bool
    seconds: float


def learning_rate(settings: LoopSettings, step: int) -> float:
    """Rate of step `step` (0-based)."""
    rise = min(1.0, (step + 1) / max(1, settings.warmup))
    left = (settings.steps - step) / max(1.0, settings.decay * settings.steps)
    return settings.learning_rate * rise * (0.5 - 0.5 * math.cos(math.pi * min(1.0, left)))


def train(
    state: State,
    losses_at: Losses,
    settings: LoopSettings,
    turn: Callable[[int], Sequence[str]] | None = None,
) -> Iterator[Progress]:
    """Runs steps until `settings.steps`; `losses_at(step, part)` gives the losses of one part of a step's examples,
    `turn(step)` says which networks learn in it (all of them without it).

    Raises FloatingPointError on a gradient that is not finite, before any weight is touched, unless it may be skipped.
    """
    skipped = 0
    while state.step < settings.steps:
        start, step = time.perf_counter(), state.step
        learning = list(state.networks) if turn is None else list(turn(step))
        rate = learning_rate(settings, step)
        for network in state.networks.values():
            network.zero_grad(set_to_none=True)
        seen = dict[str, list[float]]()
        for part in range(settings.parts):
            with synchronizing(state.networks.values(), part == settings.parts - 1):
                losses = losses_at(step, part)
                (losses["total"] / settings.parts).backward()
            for name, value in losses.items():
                seen.setdefault(name, []).append(float(value.detach()))
        norms = [_clip(state.networks[name], settings.clip) for name in learning]
        finite = all(math.isfinite(norm) for norm in norms)
        if finite:
            _update(state, learning, rate)
        skipped = 0 if finite else skipped + 1
        if not finite and (settings.nonfinite == "stop" or skipped > MOST_SKIPPED):
            raise FloatingPointError(
                f"step {step}: gradient norm {max(norms)}; lower the learning rate and resume, "
                "or set loop.nonfinite=skip if it is a rare example"
            )
        state.step += 1
        means = {name: sum(values) / len(values) for name, values in seen.items()}
        yield Progress(state.step, means, norms[0], rate, not finite, time.perf_counter() - start)


def _clip(network: nn.Module, most: float) -> float:
    """Averages the gradients over the processes, scales them to a norm of at most `most`, and returns what it was."""
    parameters = [p for p in network.parameters() if p.grad is not None]
    average_gradients(parameters)
    norm = norm_of(parameters)
    if math.isfinite(norm) and norm > most:
        scale = most / (norm + 1e-6)
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.mul_(scale)
    return norm


def _update(state: State, learning: Sequence[str], rate: float) -> None:
    for name in learning:
        for group in state.optimizers[name].param_groups:
            group["lr"] = rate
        state.optimizers[name].step()
    if next(iter(state.networks)) in learning:
        state.average.update(state.first)
