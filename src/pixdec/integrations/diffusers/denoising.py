"""Watch a pipeline's denoising loop: end it early, and keep the latents it holds at the stops.

The scheduler's list of timesteps is put into a view that iterates only up to the last stop. Everything else about it
stays as it is: its length, its entries, what a slice of it holds. So the loop ends by itself, the remaining calls of
the transformer are never made, and what follows the loop (hooks, offload, progress bar) happens as ever. And the steps
that are made are those of the full run, to the bit: multistep solvers, control windows, and inpainting, which blends
the original in at `timesteps[i + 1]`, all look at the whole list. Raising from a callback would skip the clean-up,
`interrupt` is not looked at everywhere, and a list cut short would make inpainting blend in a clean original.

The latents are read where the pipeline shows them, in `callback_on_step_end`: after blending, and after the person's
own callback. A pipeline without that callback shows them in `scheduler.step`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pixdec.integrations.diffusers.noise import estimate
from pixdec.integrations.diffusers.steps import entries_of
from pixdec.integrations.stops import Stop

if TYPE_CHECKING:
    from pixdec.latents import LatentSpace


@dataclass(frozen=True)
class Held:
    """What the pipeline held after `entries` entries of its schedule; `size` (height, width) of the image, if told;
    `estimate`, the clean latents that its model's last prediction amounts to, if that was asked for."""

    latents: Tensor
    entries: int
    size: tuple[int, int] | None
    estimate: Tensor | None = None


class Loop:
    """One run's stops, and what was held at them."""

    def __init__(self, scheduler: Any, space: LatentSpace, stops: list[Stop], *, estimates: bool = False):
        self.scheduler, self.space, self.stops, self.estimates = scheduler, space, stops, estimates
        self.size: tuple[int, int] | None = None
        self.used = 0  # entries of the schedule that the loop has begun
        self._wanted: list[int | None] = []
        self._kept: dict[int, Held] = {}
        self._last: Held | None = None
        self._estimate: Tensor | None = None

    def begin(self, first: int) -> int | None:
        """The loop begins at entry `first`: the entry it must not reach, or None."""
        self._wanted = [entries_of(stop, self.scheduler, self.space, first) for stop in self.stops]
        reached = [entries for entries in self._wanted if entries is not None]
        return max(reached) if len(reached) == len(self._wanted) else None

    def show(self, latents: Tensor) -> None:
        """A step is done, and these are the latents now.

        Raises:
            RuntimeError: the pipeline does not take its timesteps from the view one by one, so nobody knows which.
        """
        if self.used == (0 if self._last is None else self._last.entries):
            raise RuntimeError("the pipeline goes through its timesteps in a way that cannot be watched")
        self._last = Held(latents, self.used, self.size, self._estimate)
        if self.used in self._wanted:  # a copy, for a compiled step may use the memory again
            self._kept[self.used] = replace(self._last, latents=latents.detach().clone())

    def predicted(self, timestep: Any, prediction: Tensor, sample: Tensor) -> None:
        """The model's prediction for the step that the scheduler is about to make, about `sample`."""
        if self.estimates:
            self._estimate = estimate(self.scheduler, self.used, timestep, prediction, sample)

    def at_stops(self, *, interrupted: bool) -> list[Held]:
        """What was held at each stop; of a run that its own callback interrupted, what was held last.

        Raises:
            RuntimeError: the loop never began, or ended too soon.
        """
        last = self._last
        if last is None:
            raise RuntimeError("the pipeline made no step that could be seen, so there is no latent")
        missing = [entries for entries in self._wanted if entries is not None and entries not in self._kept]
        if missing and not interrupted:
            raise RuntimeError(f"the pipeline's loop ended after {last.entries} timesteps, before stop {missing[0]}")
        return [last if entries is None else self._kept.get(entries, last) for entries in self._wanted]


class TimestepView(Tensor):
    """A scheduler's timesteps, or the end of them, that iterate only up to the run's last stop.

    Operations on it give plain tensors, as `torch.nn.Parameter` does it; a slice of it is again a view.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # pyright: ignore[reportAssignmentType, reportPrivateUsage]
    loop: Loop
    first: int

    @classmethod
    def of(cls, timesteps: Tensor, loop: Loop, first: int = 0) -> TimestepView:
        view = timesteps.as_subclass(cls)
        view.loop, view.first = loop, first
        return view

    def __iter__(self) -> Iterator[Tensor]:
        end = self.loop.begin(self.first)
        for entry, timestep in enumerate(self.as_subclass(Tensor), self.first):
            if entry == end:
                return
            self.loop.used = entry + 1
            yield timestep

    def __getitem__(self, key: Any) -> Tensor:
        part = self.as_subclass(Tensor)[key]
        if isinstance(key, slice) and key.step in (None, 1):
            return TimestepView.of(part, self.loop, self.first + key.indices(len(self))[0])
        return part


@contextmanager
def watched(pipe: Any, loop: Loop, arguments: dict[str, Any]) -> Generator[dict[str, Any]]:
    """While it lasts, a call of the pipeline with the arguments that it yields stops, and shows its latents, to `loop`.

    Afterwards pipeline and scheduler are as an ordinary run leaves them, also after an error.
    """
    with ExitStack() as changes:
        scheduler = pipe.scheduler
        changes.enter_context(replaced(scheduler, "set_timesteps", with_view(scheduler, loop)))
        changes.callback(plain_timesteps, scheduler)
        if (sized := with_size(pipe, loop)) is not None:
            changes.enter_context(replaced(pipe, "prepare_latents", sized))
        shown = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
        changes.enter_context(replaced(scheduler, "step", with_step(scheduler, loop, show=not shown)))
        yield _with_callback(arguments, loop) if shown else arguments


@contextmanager
def replaced(owner: Any, name: str, value: object) -> Generator[None]:
    """An attribute of the instance itself for a while; before and after, `vars(owner)` is the same."""
    attributes = vars(owner)
    missing = object()
    before = attributes.get(name, missing)
    attributes[name] = value
    try:
        yield
    finally:
        if before is missing:
            del attributes[name]
        else:
            attributes[name] = before


def with_view(scheduler: Any, loop: Loop) -> Callable[..., None]:
    original = scheduler.set_timesteps

    @functools.wraps(original)  # pipelines look at its signature
    def set_timesteps(*args: Any, **kwargs: Any) -> None:
        original(*args, **kwargs)
        scheduler.timesteps = TimestepView.of(scheduler.timesteps, loop)

    return set_timesteps


def plain_timesteps(scheduler: Any) -> None:
    if isinstance(scheduler.timesteps, TimestepView):
        scheduler.timesteps = scheduler.timesteps.as_subclass(Tensor)


def with_size(pipe: Any, loop: Loop) -> Callable[..., Any] | None:
    """`prepare_latents`, told the image's size: what a pipeline has made of its arguments, defaults and input image."""
    original = getattr(pipe, "prepare_latents", None)
    if original is None or not {"height", "width"} <= set(inspect.signature(original).parameters):
        return None
    signature = inspect.signature(original)

    @functools.wraps(original)
    def prepare_latents(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        loop.size = int(given["height"]), int(given["width"])
        return original(*args, **kwargs)

    return prepare_latents


def _with_callback(arguments: dict[str, Any], loop: Loop) -> dict[str, Any]:
    """The arguments with a callback that shows the latents, after the person's own one if there is one."""
    own = arguments.get("callback_on_step_end")
    # diffusers' callback objects name their tensors themselves; for functions an argument does.
    names = getattr(own, "tensor_inputs", None) or arguments.get("callback_on_step_end_tensor_inputs") or ["latents"]

    def on_step_end(pipe: Any, step: int, timestep: Tensor, tensors: dict[str, Any]) -> dict[str, Any]:
        if own is None:
            changed: dict[str, Any] = {}
        else:
            changed = own(pipe, step, timestep, {name: tensors[name] for name in names})
        loop.show(changed.get("latents", tensors["latents"]))
        return changed

    inputs = [*names, *(name for name in ("latents",) if name not in names)]
    return {**arguments, "callback_on_step_end": on_step_end, "callback_on_step_end_tensor_inputs": inputs}


def with_step(scheduler: Any, loop: Loop, *, show: bool) -> Callable[..., Any]:
    """`step`, which tells the loop the model's prediction and, if it is to show them, the latents that come out."""
    original = scheduler.step

    @functools.wraps(original)  # pipelines look at its signature
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        loop.predicted(timestep, model_output, sample)
        result = original(model_output, timestep, sample, *args, **kwargs)
        if show:
            loop.show(cast("Tensor", result[0]))  # a tuple, or an output object that can be indexed like one
        return result

    return step
