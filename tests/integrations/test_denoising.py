"""The loop is watched and ended without a trace: callbacks, interruption, errors, clean-up, progress bar."""

from __future__ import annotations

import io
import subprocess
import sys
from typing import Any

import pytest
import torch
from cases import ALL, BY_NAME, PIXART, STEPS, STOP, Case
from diffusers.callbacks import SDXLCFGCutoffCallback

from pixdec.integrations.diffusers import capture
from pixdec.integrations.diffusers.denoising import Loop, TimestepView
from pixdec.latents import get_space


def state(pipe: Any) -> dict[str, Any]:
    """What pipeline, scheduler and models have of their own, by name and type; the schedule also by value."""
    parts = {"pipe": pipe, **{name: part for name, part in pipe.components.items() if hasattr(part, "__dict__")}}
    found: dict[str, Any] = {
        f"{name}.{key}": type(value) for name, part in parts.items() for key, value in vars(part).items()
    }
    schedule = ("timesteps", "sigmas", "alphas_cumprod", "num_inference_steps")
    return {**found, **{name: str(getattr(pipe.scheduler, name, None)) for name in schedule}}


@pytest.mark.parametrize("case", [*ALL, PIXART], ids=str)
def test_a_stopped_run_leaves_what_a_full_run_leaves(case: Case):
    pipe = case.build()
    pipe(**case.run_arguments(output_type="latent"))
    before = state(pipe)
    capture(pipe, stop_after=STOP, **case.run_arguments())
    assert state(pipe) == before
    assert type(pipe.scheduler.timesteps) is torch.Tensor


@pytest.mark.parametrize("case", [*ALL, PIXART], ids=str)
def test_an_error_in_the_middle_leaves_what_it_always_leaves(case: Case, monkeypatch: pytest.MonkeyPatch):
    pipe = case.build()
    step = type(pipe.scheduler).step
    made: list[int] = []

    def fails_the_second_time(*args: Any, **kwargs: Any) -> Any:
        made.append(1)
        if len(made) == 2:
            raise RuntimeError("out of memory")
        return step(*args, **kwargs)

    monkeypatch.setattr(type(pipe.scheduler), "step", fails_the_second_time)
    with pytest.raises(RuntimeError, match="out of memory"):
        pipe(**case.run_arguments(output_type="latent"))
    usual = state(pipe)
    made.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        capture(pipe, stop_after=STOP, **case.run_arguments())
    assert state(pipe) == usual
    assert type(pipe.scheduler.timesteps) is torch.Tensor


def test_the_persons_callback_sees_and_changes_what_it_always_does():
    case = BY_NAME["sd3"]
    pipe = case.build()
    seen: list[tuple[int, float, list[str]]] = []

    def callback(own: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        assert own is pipe
        seen.append((step, float(timestep), sorted(tensors)))
        return {"latents": tensors["latents"] * 0.5} if "latents" in tensors else {}

    pipe(**case.run_arguments(output_type="latent", callback_on_step_end=callback))
    full, seen[:] = list(seen), []
    latent = capture(pipe, stop_after=STOP, **case.run_arguments(callback_on_step_end=callback))
    assert seen == full[:STOP]
    plain = capture(pipe, stop_after=1, **case.run_arguments())
    halved = capture(pipe, stop_after=1, **case.run_arguments(callback_on_step_end=callback))
    assert torch.equal(halved.tensor, plain.tensor * 0.5)
    assert latent.tensor.abs().max() < 1
    seen.clear()
    names = ["prompt_embeds"]
    capture(
        pipe,
        stop_after=2,
        **case.run_arguments(callback_on_step_end=callback, callback_on_step_end_tensor_inputs=names),
    )
    assert [tensors for _, _, tensors in seen] == [["prompt_embeds"]] * 2  # not the latents that we asked for
    assert names == ["prompt_embeds"]


def test_diffusers_callback_objects_work():
    """They name their tensors themselves. This one ends guidance half-way: from then on half the batch is asked."""
    case = BY_NAME["sdxl"]
    pipe = case.build()
    batches: list[int] = []
    hook = pipe.unet.register_forward_pre_hook(lambda _module, inputs: batches.append(inputs[0].shape[0]))
    cutoff = SDXLCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=2)
    arguments = {"guidance_scale": 5.0, "callback_on_step_end": cutoff}
    latent = capture(pipe, stop_after=STOP, **case.run_arguments(**arguments))
    hook.remove()
    assert batches == [2, 2, 2, 1]
    assert latent.tensor.shape[0] == 1


@pytest.mark.parametrize("name", ["flux", "sdxl", "qwen-image"])
def test_a_person_may_interrupt(name: str):
    case = BY_NAME[name]
    pipe = case.build()

    def interrupt(own: Any, step: int, _timestep: Any, _tensors: Any) -> dict[str, Any]:
        own._interrupt = step == 1
        return {}

    expected = capture(pipe, stop_after=2, **case.run_arguments())
    early, late = capture(pipe, stop_after=[1, STOP], **case.run_arguments(callback_on_step_end=interrupt))
    assert torch.equal(late.tensor, expected.tensor)
    assert torch.equal(late.sigma, expected.sigma)
    assert float(early.sigma) > float(late.sigma)


@pytest.mark.parametrize("name", ["flux", "sdxl-inpaint"])
def test_progress_bar_and_clean_up(name: str, monkeypatch: pytest.MonkeyPatch):
    """Also for SDXL's inpainting pipelines, which return latents without freeing their hooks."""
    from tqdm.auto import tqdm

    case = BY_NAME[name]
    pipe = case.build()
    written, freed = io.StringIO(), []
    pipe.set_progress_bar_config(file=written, mininterval=0)
    monkeypatch.setattr(type(pipe), "maybe_free_model_hooks", lambda own: freed.append(own))
    capture(pipe, stop_after=STOP, **case.run_arguments())
    assert freed
    total = STEPS - case.start
    assert f"{STOP - case.start}/{total}" in written.getvalue()
    assert f"{total}/{total}" not in written.getvalue()
    assert not [bar for bar in tqdm._instances if bar.fp is written]


def test_a_loop_of_another_kind_is_reported(monkeypatch: pytest.MonkeyPatch):
    """A pipeline that goes its own way through the schedule must not give a latent of another step."""
    case = BY_NAME["sd3"]
    pipe = case.build()
    listed = TimestepView.__iter__
    ways = {
        "ended after 3 timesteps, before stop 4": lambda view: (
            t for _, t in zip(range(3), listed(view), strict=False)
        ),
        "cannot be watched": lambda view: iter(list(listed(view))),
        "in a way that cannot be": lambda view: iter(view.clone()),
        "made no step": lambda _view: iter(()),
    }
    for message, way in ways.items():
        with monkeypatch.context() as patch:
            patch.setattr(TimestepView, "__iter__", way)
            with pytest.raises(RuntimeError, match=message):
                capture(pipe, stop_after=STOP, **case.run_arguments())


def test_the_view():
    loop = Loop(scheduler(), get_space("flux1"), [4])
    view = TimestepView.of(loop.scheduler.timesteps, loop)
    assert len(view) == 6
    assert [float(t) for t in view] == [6, 5, 4, 3]
    assert loop.used == 4
    assert type(view[5]) is torch.Tensor
    assert float(view[5]) == 1
    later = view[2:]
    assert len(later) == 4
    assert [float(t) for t in later] == [4, 3]
    assert [float(t) for t in view[1:3]] == [5, 4]
    for plain in (view + 1, view.repeat(2), view[:1].repeat(3), view == 3, view.clone()):
        assert type(plain) is torch.Tensor
    values = torch.arange(10.0)
    assert type(values[view[:2].long()]) is torch.Tensor  # as an index it does not spread
    ending = TimestepView.of(loop.scheduler.timesteps, Loop(loop.scheduler, get_space("flux1"), [4, None]))
    assert len(list(ending)) == 6


def scheduler() -> Any:
    import diffusers

    made = diffusers.FlowMatchEulerDiscreteScheduler()
    made.set_timesteps(6)
    made.timesteps = torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0])
    return made


def test_without_diffusers_it_is_one_line():
    code = (
        "import sys, importlib.util as u; found = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'diffusers' else found(name, *a)\n"
        "import pixdec.integrations\n"
        "try:\n    import pixdec.integrations.diffusers\n"
        "except ImportError as error:\n    print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert said == "pixdec.integrations.diffusers needs diffusers: pip install 'pixdec[pipelines]'\n"


def test_importing_it_imports_no_pipeline():
    code = "import sys, pixdec.integrations.diffusers; assert 'diffusers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
