"""How much noise a pipeline's latent holds, read off its scheduler's own schedule.

In the middle of a run a pipeline holds x = a·z + b·ξ, with z the clean normalised latent and ξ noise of unit variance.
After k entries of the schedule have been used (`scheduler.timesteps[:k]`), s being `scheduler.sigmas[k]`:

| schedulers | a, b |
|---|---|
| flow matching, and DPM++, UniPC, DEIS and SA with use_flow_sigmas | 1 − s, s |
| Euler, Heun, KDPM2, LMS, DPM++ SDE: the frame of Karras et al. 2022 | 1, s |
| DPM++, UniPC, DEIS, SA otherwise: variance preserving | 1/√(s²+1), s/√(s²+1) |
| DDIM, DDPM, LCM, TCD: ᾱ of the time step that the k-th step ends at | √ᾱ, √(1−ᾱ) |

Shifts and the Karras, exponential and beta variants only move the values of `sigmas`, so reading them covers all.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from pixdec.latents import LatentSpace

_FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
_EDM = (
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LMSDiscreteScheduler",
    "DPMSolverSDEScheduler",
)
_PRESERVING = (
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
)
_CUMULATIVE = ("DDIMScheduler", "DDPMScheduler", "LCMScheduler", "TCDScheduler")
_KNOWN = (*_FLOW, *_EDM, *_PRESERVING, *_CUMULATIVE)
_FAMILY_OWN = ("FlowMatchEulerDiscreteScheduler", "EulerDiscreteScheduler")
_RESPACED = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")


@dataclass(frozen=True)
class Mixture:
    """x = signal·z + noise·ξ."""

    signal: float
    noise: float

    def scale(self, space: LatentSpace) -> float:
        """What to divide x by to have it in the frame of `space`: a + b for flow, √(a² + b²) for vp.

        So that the result is (1−σ)·z + σ·ξ, or √(1−σ²)·z + σ·ξ, with σ = noise / scale.
        """
        return self.signal + self.noise if space.noise == "flow" else math.hypot(self.signal, self.noise)

    def sigma(self, space: LatentSpace) -> float:
        """The noise level in the frame of `space`, in [0, 1]."""
        return self.noise / self.scale(space)

    def into(self, latent: Tensor, space: LatentSpace) -> Tensor:
        """The latent as a scheduler holds it → in the frame of `space`, in its dtype; computed in float32."""
        scale = self.scale(space)
        if abs(scale - 1) < 1e-6:  # the scheduler holds this frame already: leave every bit as it is
            return latent
        return (latent.float() / scale).to(latent.dtype)


def check_scheduler(scheduler: Any) -> None:
    """Refuse a scheduler whose latents' noise cannot be told.

    Raises:
        ValueError: its class is not known here, or it runs from image to noise.
    """
    if _kind(scheduler) is None:
        raise ValueError(
            f"{type(scheduler).__name__}: how much noise its latents hold is not known here; set pipe.scheduler to "
            f"one of {', '.join(_KNOWN)}"
        )
    if scheduler.config.get("invert_sigmas"):
        raise ValueError("a scheduler with invert_sigmas=True runs the other way; nothing here expects it")


def step_count(scheduler: Any) -> int:
    """Steps in the schedule that `set_timesteps` made: N, whatever number of entries a step has."""
    entries = len(scheduler.timesteps)
    return (entries + 1) // 2 if scheduler.order == 2 else entries


def entries_after(scheduler: Any, step: int) -> int:
    """Entries of `scheduler.timesteps` that `step` steps use.

    Second-order schedulers (Heun, KDPM2, DPM++ SDE) call the model twice a step, only the last step once.
    """
    return min(2 * step, len(scheduler.timesteps)) if scheduler.order == 2 else step


def mixture_after(scheduler: Any, entries: int) -> Mixture:
    """What the latent is made of after that many entries of the schedule.

    Raises:
        ValueError: a flow scheduler's sigma lies above 1: the pipeline uses it in another sense.
    """
    kind = _kind(scheduler)
    assert kind is not None, "check_scheduler comes first"
    if kind in _CUMULATIVE:
        return _preserving(_cumulative(scheduler, kind, entries))
    return _at(scheduler, kind, entries)


def estimate(scheduler: Any, entries: int, timestep: Any, prediction: Tensor, sample: Tensor) -> Tensor:
    """The clean latent z, float32, that a prediction amounts to: of ξ, z or a velocity, about sample = a·z + b·ξ, made
    for entry number `entries` of the schedule, counted from 1, while the scheduler is at that step."""
    kind = _kind(scheduler)
    assert kind is not None, "check_scheduler comes first"
    if kind in _CUMULATIVE:
        mixture = _preserving(float(scheduler.alphas_cumprod[int(scheduler.timesteps[entries - 1])]))
    elif kind in _EDM:  # between two entries of their lists some have sigmas of their own, which scale their input
        scaled = float(scheduler.scale_model_input(sample.new_ones(1, dtype=torch.float64), timestep))
        mixture = Mixture(1.0, math.sqrt(max(0.0, scaled**-2 - 1)))
    else:
        mixture = _at(scheduler, kind, entries - 1)
    x, made = sample.float(), prediction.float()
    if _is_flow(scheduler, kind):  # the velocity ξ − z
        return x - mixture.noise * made
    what = scheduler.config.get("prediction_type", "epsilon")
    if what == "epsilon":
        return (x - mixture.noise * made) / mixture.signal
    if what == "v_prediction":  # a·ξ − b·z, in the frame where a² + b² = 1
        scale = math.hypot(mixture.signal, mixture.noise)
        return (mixture.signal * x / scale - mixture.noise * made) / scale
    if what == "sample":
        return made
    raise ValueError(
        f"{kind} with prediction_type={what!r}: its model's estimate of the clean latent is not known here; run to the "
        "end (stop_after=None)"
    )


def _is_flow(scheduler: Any, kind: str) -> bool:
    return kind in _FLOW or (kind in _PRESERVING and bool(scheduler.config.get("use_flow_sigmas")))


def _preserving(kept: float) -> Mixture:
    return Mixture(math.sqrt(kept), math.sqrt(1 - kept))


def _at(scheduler: Any, kind: str, entries: int) -> Mixture:
    """At a place of a scheduler's list of sigmas."""
    sigma = float(scheduler.sigmas[entries])
    if _is_flow(scheduler, kind):
        if not 0 <= sigma <= 1:
            raise ValueError(
                f"{kind} with sigma {sigma:g} after {entries} timesteps: flow matching has 0 to 1, so this pipeline "
                "uses it for another kind of noise, which is not known here"
            )
        return Mixture(1 - sigma, sigma)
    if kind in _EDM:
        return Mixture(1.0, sigma)
    scale = math.sqrt(sigma**2 + 1)
    return Mixture(1 / scale, sigma / scale)


def is_family_own(scheduler: Any) -> bool:
    """Whether it spaces its steps as the published pipelines do: flow matching or Euler, without Karras and the like.

    Their schedules depend on the share of steps done only, so that a table's entry serves any number of steps.
    """
    return _kind(scheduler) in _FAMILY_OWN and not any(scheduler.config.get(name) for name in _RESPACED)


def _kind(scheduler: Any) -> str | None:
    """The nearest class among those known here: a person's subclass counts as what it extends."""
    return next((base.__name__ for base in type(scheduler).__mro__ if base.__name__ in _KNOWN), None)


def _cumulative(scheduler: Any, kind: str, entries: int) -> float:
    """ᾱ that the last step ended at, by each scheduler's own rule."""
    timesteps = scheduler.timesteps
    if kind == "DDIMScheduler":  # counts back a fixed stride, which the next entry of the list need not be
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        ended = int(timesteps[entries - 1]) - stride
        return float(scheduler.alphas_cumprod[ended] if ended >= 0 else scheduler.final_alpha_cumprod)
    if entries < len(timesteps):
        return float(scheduler.alphas_cumprod[int(timesteps[entries])])
    # TCD's last step ends at time step 0, which still has a little noise; the others' at the clean latent.
    return float(scheduler.alphas_cumprod[0]) if kind == "TCDScheduler" else 1.0
