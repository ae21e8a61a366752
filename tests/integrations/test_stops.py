"""Where runs stop: the table, other schedules, and what is no stop."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from cases import BY_NAME, SDXL_NOISE
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu

from pixdec.integrations.diffusers import capture
from pixdec.integrations.diffusers.noise import mixture_after
from pixdec.integrations.diffusers.steps import automatic
from pixdec.integrations.stops import check_stops
from pixdec.latents import SPACES, get_space

TOKENS = 32 * 32  # of an image of 512×512


def own_schedule(family: str, steps: int) -> Any:
    """The family's published scheduler, set as its pipeline sets it."""
    flow = diffusers.FlowMatchEulerDiscreteScheduler
    shifts = {
        "flux1": calculate_shift(TOKENS),
        "flux2": compute_empirical_mu(TOKENS, steps),
        "qwen-image": calculate_shift(TOKENS, max_seq_len=8192, base_shift=0.5, max_shift=0.9),
    }
    if family == "sdxl":
        scheduler = diffusers.EulerDiscreteScheduler(**SDXL_NOISE)
        scheduler.set_timesteps(steps)
        return scheduler
    scheduler = (
        flow(use_dynamic_shifting=True, shift_terminal=0.02 if family == "qwen-image" else None)
        if family in shifts
        else flow(shift=3.0)
    )
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=shifts.get(family))
    return scheduler


@pytest.mark.parametrize("family", [space.name for space in SPACES.values() if space.stop])
def test_the_table(family: str):
    space = get_space(family)
    assert space.stop is not None
    step, steps, expected = space.stop
    scheduler = own_schedule(family, steps)
    assert automatic(scheduler, space) == step
    level = mixture_after(scheduler, step).sigma(space)
    assert level == pytest.approx(expected, abs=0.006)
    # Another number of steps: about the same noise.
    for other in (20, 2 * steps):
        scheduler = own_schedule(family, other)
        chosen = automatic(scheduler, space)
        assert chosen is not None
        after, here, before = (mixture_after(scheduler, chosen + offset).sigma(space) for offset in (1, 0, -1))
        if family == "flux2" and other > steps:  # its pipeline shifts long runs less
            assert here < level
        else:
            assert after < level < before
    # Few steps are a distilled model's: it ends clean.
    assert automatic(own_schedule(family, 8), space) is None


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerDiscreteScheduler(**SDXL_NOISE, use_karras_sigmas=True),
        diffusers.DPMSolverMultistepScheduler(**SDXL_NOISE, use_karras_sigmas=True),
        diffusers.HeunDiscreteScheduler(**SDXL_NOISE, use_karras_sigmas=True),
    ],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_other_schedules_stop_at_the_familys_noise(scheduler: Any):
    scheduler.set_timesteps(30)
    space = get_space("sdxl")
    chosen = automatic(scheduler, space)
    assert chosen is not None
    assert chosen < 24  # Karras' steps crowd at the clean end, so more of them are spared
    assert mixture_after(scheduler, chosen * scheduler.order).sigma(space) == pytest.approx(0.33, abs=0.05)


def test_auto_in_a_pipeline():
    case = BY_NAME["sdxl"]
    pipe = case.build()
    latent, same = capture(pipe, stop_after=["auto", 13], **case.run_arguments(num_inference_steps=15))
    assert latent.sigma == same.sigma
    assert capture(pipe, stop_after="auto", **case.run_arguments(num_inference_steps=4)).sigma == 0
    image_to_image = BY_NAME["sdxl-img2img"]
    barely = capture(
        image_to_image.build(),
        stop_after="auto",
        **image_to_image.run_arguments(num_inference_steps=15, strength=0.1),
    )
    assert barely.sigma == 0  # it begins behind the step that "auto" means, so it runs to the end


def test_stops_are_one_or_a_list():
    assert check_stops(None) == [None]
    assert check_stops(24) == [24]
    assert check_stops("auto") == ["auto"]
    assert check_stops([22, "auto", None]) == [22, "auto", None]
    assert check_stops((3,)) == [3]


@pytest.mark.parametrize("stop", [0, -2, 2.0, True, "last", [], [3, "x"], [[3]]], ids=repr)
def test_no_stop(stop: Any):
    with pytest.raises(ValueError, match="stop_after=") as refused:
        check_stops(stop)
    assert "\n" not in str(refused.value)


def test_a_stop_that_the_run_does_not_have():
    case = BY_NAME["flux"]
    pipe = case.build()
    with pytest.raises(ValueError, match=r"stop_after=7: this run has 6 steps; ask for at most 6"):
        capture(pipe, stop_after=7, **case.run_arguments())
    case = BY_NAME["flux-img2img"]
    pipe = case.build()
    calls: list[int] = []
    hook = pipe.transformer.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match=r"stop_after=3: nothing is left to run.*after step 3 of 6.*ask for 4 to 6"):
        capture(pipe, stop_after=[3, 5], **case.run_arguments(strength=0.5))
    hook.remove()
    assert not calls


def test_levels_are_within_the_trained_range():
    stops = [space.stop for space in SPACES.values() if space.stop is not None]
    assert len(stops) == 6
    assert all(step < steps and 0 < level < 0.4 for step, steps, level in stops)


def test_a_sigma_is_the_first_step_that_is_as_clean():
    case = BY_NAME["sd3"]
    pipe = case.build()
    each = capture(pipe, stop_after=[1, 2, 3, 4, 5], **case.run_arguments())
    level = float(each[2].sigma)
    for asked, step in ((level, 3), (level + 1e-3, 3), (level - 1e-3, 4)):
        latent = capture(pipe, stop_after=asked, **case.run_arguments())
        assert torch.equal(latent.tensor, each[step - 1].tensor)
        assert torch.equal(latent.sigma, each[step - 1].sigma)
