"""Schedulers of every kind: what they hold, how much noise is in it, by their word and by its variance."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from cases import BY_NAME, SDXL_NOISE, denoiser, noise
from exact import gaussian, stand_in

from pixdec.encoder import first_decode
from pixdec.integrations.diffusers import capture
from pixdec.integrations.diffusers.noise import Mixture, check_scheduler, mixture_after
from pixdec.latents import Latent, get_space

Make = Callable[[], Any]
SPREAD = 0.3  # of the clean latents: small, so that the variance is mostly noise and a wrong sigma shows

_SDXL = {name: SDXL_NOISE[name] for name in ("beta_start", "beta_end", "beta_schedule")}
ON_SDXL: dict[str, Make] = {
    "euler": lambda: diffusers.EulerDiscreteScheduler(**SDXL_NOISE),
    "euler-karras": lambda: diffusers.EulerDiscreteScheduler(**SDXL_NOISE, use_karras_sigmas=True),
    "euler-exponential": lambda: diffusers.EulerDiscreteScheduler(**SDXL_NOISE, use_exponential_sigmas=True),
    "euler-beta": lambda: diffusers.EulerDiscreteScheduler(**SDXL_NOISE, use_beta_sigmas=True),
    "euler-trailing": lambda: diffusers.EulerDiscreteScheduler(**_SDXL, timestep_spacing="trailing"),
    "euler-ancestral": lambda: diffusers.EulerAncestralDiscreteScheduler(**SDXL_NOISE),
    "heun": lambda: diffusers.HeunDiscreteScheduler(**SDXL_NOISE),
    "heun-karras": lambda: diffusers.HeunDiscreteScheduler(**SDXL_NOISE, use_karras_sigmas=True),
    "kdpm2": lambda: diffusers.KDPM2DiscreteScheduler(**SDXL_NOISE),
    "kdpm2-ancestral": lambda: diffusers.KDPM2AncestralDiscreteScheduler(**SDXL_NOISE),
    "lms": lambda: diffusers.LMSDiscreteScheduler(**SDXL_NOISE),
    "dpm++2m": lambda: diffusers.DPMSolverMultistepScheduler(**SDXL_NOISE),
    "dpm++2m-karras": lambda: diffusers.DPMSolverMultistepScheduler(**SDXL_NOISE, use_karras_sigmas=True),
    "dpm++2m-sde": lambda: diffusers.DPMSolverMultistepScheduler(**SDXL_NOISE, algorithm_type="sde-dpmsolver++"),
    "dpm++2s": lambda: diffusers.DPMSolverSinglestepScheduler(**_SDXL),
    "unipc": lambda: diffusers.UniPCMultistepScheduler(**SDXL_NOISE),
    "deis": lambda: diffusers.DEISMultistepScheduler(**SDXL_NOISE),
    "sa": lambda: diffusers.SASolverScheduler(**SDXL_NOISE),
    "ddim": lambda: diffusers.DDIMScheduler(**SDXL_NOISE, clip_sample=False),
    "ddim-trailing": lambda: diffusers.DDIMScheduler(**_SDXL, clip_sample=False, timestep_spacing="trailing"),
    "ddpm": lambda: diffusers.DDPMScheduler(**SDXL_NOISE, clip_sample=False),
    "lcm": lambda: diffusers.LCMScheduler(**_SDXL, original_inference_steps=100),
    "tcd": lambda: diffusers.TCDScheduler(**_SDXL, original_inference_steps=100),
}
_FLOW: dict[str, Any] = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0}
ON_SD3: dict[str, Make] = {
    "flow-euler": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-euler-dynamic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    "flow-euler-karras": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_karras_sigmas=True),
    "flow-euler-stochastic": lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True),
    "flow-heun": lambda: diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0),
    "flow-lcm": lambda: diffusers.FlowMatchLCMScheduler(shift=3.0),
    "dpm++2m-flow": lambda: diffusers.DPMSolverMultistepScheduler(**_FLOW),
    "dpm++2s-flow": lambda: diffusers.DPMSolverSinglestepScheduler(**_FLOW),
    "unipc-flow": lambda: diffusers.UniPCMultistepScheduler(**_FLOW),
    "deis-flow": lambda: diffusers.DEISMultistepScheduler(**_FLOW),
}
# These predict the clean latent and noise it anew. The prediction for a Gaussian has less variance than the Gaussian,
# so they are tried on the one of variance 0.
RENOISING = {"lcm", "flow-euler-stochastic", "flow-lcm"}
SECOND_ORDER = {"heun", "heun-karras", "kdpm2", "kdpm2-ancestral", "flow-heun"}
BOTH = [*(("sdxl", name) for name in ON_SDXL), *(("sd3", name) for name in ON_SD3)]


def built(space: str, name: str) -> tuple[Any, Any]:
    case = BY_NAME[space]
    pipe = case.build()
    pipe.scheduler = (ON_SDXL if space == "sdxl" else ON_SD3)[name]()
    return pipe, case


@pytest.mark.parametrize(("space", "name"), BOTH, ids=lambda value: value)
def test_stopping_changes_no_step(space: str, name: str):
    """Multistep solvers lower their order near the end of the list: the list must still be seen whole."""
    pipe, case = built(space, name)
    steps, stop = 6, 5
    held: list[torch.Tensor] = []

    def callback(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(tensors["latents"].clone())
        return {}

    torch.manual_seed(3)  # some draw from the global generator
    pipe(**case.run_arguments(num_inference_steps=steps, callback_on_step_end=callback, output_type="latent"))
    calls: list[int] = []
    hook = denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    torch.manual_seed(3)
    latent = capture(pipe, stop_after=stop, **case.run_arguments(num_inference_steps=steps))
    hook.remove()
    used = 2 * stop if name in SECOND_ORDER else stop
    assert len(calls) == used
    assert len(held) == (2 * steps - 1 if name in SECOND_ORDER else steps)
    mixture = mixture_after(pipe.scheduler, used)
    assert torch.equal(latent.tensor, mixture.into(held[used - 1], get_space(space)))


def variance(sigma: float, spread: float, *, flow: bool) -> float:
    """Of (1−sigma)·z + sigma·noise, or sqrt(1−sigma²)·z + sigma·noise, with z of variance spread²."""
    kept = 1 - sigma if flow else math.sqrt(1 - sigma**2)
    return kept**2 * spread**2 + sigma**2


@pytest.mark.parametrize(("space", "name"), BOTH, ids=lambda value: value)
def test_variance_is_what_sigma_says(space: str, name: str, monkeypatch: pytest.MonkeyPatch):
    """The exact model of a Gaussian stands in for the denoiser: what is held then has a variance known beforehand."""
    pipe, case = built(space, name)
    flow, spread = space == "sd3", 0.0 if name in RENOISING else SPREAD
    stand_in(monkeypatch, pipe, case, gaussian(spread, flow=flow))
    start = noise(1, 16 if flow else 4, 64, 64)
    torch.manual_seed(3)
    latents = capture(
        pipe,
        stop_after=[50, 80, 88],
        **case.run_arguments(num_inference_steps=100, height=512, width=512, latents=start / start.std()),
    )
    previous = 1.0
    for latent in latents:
        sigma = float(latent.sigma)
        assert 0 < sigma < previous
        previous = sigma
        assert float(latent.tensor.var()) == pytest.approx(variance(sigma, spread, flow=flow), rel=0.035)


@pytest.mark.parametrize(("space", "name"), [("sdxl", "euler"), ("sdxl", "dpm++2m"), ("sd3", "flow-euler")])
def test_sigma_of_another_step_would_show(space: str, name: str):
    """The test above has to notice: neighbouring steps differ by more than it tolerates."""
    pipe, _ = built(space, name)
    pipe.scheduler.set_timesteps(100)
    for stop in (80, 88):
        before, here, after = (
            variance(mixture_after(pipe.scheduler, entries).sigma(get_space(space)), SPREAD, flow=space == "sd3")
            for entries in (stop - 1, stop, stop + 1)
        )
        assert before / here > 1.04
        assert here / after > 1.04


def test_ddim_counts_back_a_stride_of_its_own(monkeypatch: pytest.MonkeyPatch):
    """Spaced by linspace, the next entry of its list is not where its step ends."""
    pipe, case = built("sdxl", "ddim")
    pipe.scheduler = diffusers.DDIMScheduler(**_SDXL, clip_sample=False, timestep_spacing="linspace")
    stand_in(monkeypatch, pipe, case, gaussian(0.0, flow=False))
    start = noise(1, 4, 64, 64)
    arguments = case.run_arguments(num_inference_steps=4, height=512, width=512, latents=start / start.std())
    latent = capture(pipe, stop_after=1, **arguments)
    assert float(latent.tensor.std()) == pytest.approx(float(latent.sigma), rel=0.005)
    following = float(pipe.scheduler.alphas_cumprod[int(pipe.scheduler.timesteps[1])])
    assert abs(math.sqrt(1 - following) - float(latent.sigma)) > 0.02


def test_heun_ends_at_the_clean_latent():
    pipe, case = built("sdxl", "heun")
    inner, end = capture(pipe, stop_after=[5, None], **case.run_arguments())
    last = capture(pipe, stop_after=6, **case.run_arguments())
    assert float(end.sigma) == 0
    assert float(inner.sigma) > 0
    assert torch.equal(last.tensor, end.tensor)


@pytest.mark.parametrize("strength", [0.5, 0.34])
@pytest.mark.parametrize("name", ["euler", "heun", "dpm++2m"])
def test_image_to_image_counts_steps_of_the_full_schedule(name: str, strength: float):
    case = BY_NAME["sdxl-img2img"]
    pipe = case.build()
    pipe.scheduler = ON_SDXL[name]()
    calls: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda *_: calls.append(1))
    latent = capture(pipe, stop_after=5, **case.run_arguments(strength=strength))
    hook.remove()
    start = 6 - int(6 * strength)
    assert len(calls) == (5 - start) * pipe.scheduler.order
    entries = 5 * pipe.scheduler.order
    assert float(latent.sigma) == pytest.approx(mixture_after(pipe.scheduler, entries).sigma(latent.space))


def test_final_noise_is_read_too():
    """A schedule that does not end at the clean latent says so."""
    pipe, case = built("sdxl", "dpm++2m")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**SDXL_NOISE, final_sigmas_type="sigma_min")
    latent = capture(pipe, **case.run_arguments())
    assert float(latent.sigma) == pytest.approx(0.0292, abs=1e-3)


def test_unknown_schedulers_are_one_line():
    case = BY_NAME["sdxl"]
    pipe = case.build()
    pipe.scheduler = diffusers.PNDMScheduler(**_SDXL, skip_prk_steps=True)
    with pytest.raises(ValueError, match=r"PNDMScheduler: how much noise.*EulerDiscreteScheduler") as refused:
        capture(pipe, stop_after=3, **case.run_arguments())
    assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="invert_sigmas"):
        check_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True))

    class Mine(diffusers.EulerDiscreteScheduler):
        """A person's own variant counts as what it extends."""

    check_scheduler(Mine())


def test_flow_sigmas_above_one_are_no_flow():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(4)
    scheduler.sigmas = torch.tensor([80.0, 20.0, 2.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"sigma 2 after 2 timesteps"):
        mixture_after(scheduler, 2)


@pytest.mark.parametrize("space", ["flux1", "sdxl"])
def test_frames(space: str):
    """a·z + b·noise is brought to the frame in which sigma alone says both."""
    target = get_space(space)
    held = 3.0 * torch.tensor([1.0]) + 2.0 * torch.tensor([10.0])
    mixture = Mixture(3.0, 2.0)
    sigma = mixture.sigma(target)
    kept = 1 - sigma if space == "flux1" else math.sqrt(1 - sigma**2)
    assert mixture.into(held, target).item() == pytest.approx(kept * 1.0 + sigma * 10.0)


@pytest.mark.parametrize(("space", "name"), BOTH, ids=lambda value: value)
def test_a_model_that_knows_the_picture_is_believed(space: str, name: str, monkeypatch: pytest.MonkeyPatch):
    """Its every prediction amounts to one clean latent, whose image is what an early stop gives."""
    pipe, case = built(space, name)
    picture = 0.5 * noise(1, 16 if space == "sd3" else 4, 8, 12, seed=9)
    stand_in(
        monkeypatch,
        pipe,
        case,
        lambda x, sigma: (
            (x - (1 - sigma if space == "sd3" else 1) * picture) / sigma - (picture if space == "sd3" else 0)
        ),
    )
    expected = first_decode(Latent(picture, space), pipe.vae).tensor
    for stop in (2, 4):
        torch.manual_seed(3)
        low = capture(pipe, stop_after=stop, space="rgb", **case.run_arguments())
        assert float(low.sigma) > 0
        assert torch.allclose(low.tensor, expected, atol=0.02), float((low.tensor - expected).abs().max())
