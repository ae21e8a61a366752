"""A stop as a place in a scheduler's schedule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pixdec.integrations.diffusers.noise import entries_after, is_family_own, mixture_after, step_count
from pixdec.integrations.stops import Stop, is_reached

if TYPE_CHECKING:
    from pixdec.latents import LatentSpace

_FEW = 12  # a run of fewer steps is a distilled model's: each step is too large to leave out


def entries_of(stop: Stop, scheduler: Any, space: LatentSpace, first: int) -> int | None:
    """A stop → how many entries of `scheduler.timesteps` to use; None: all that the pipeline goes through.

    first: the entry that the pipeline begins at: not 0 when image-to-image skips what its `strength` leaves out.

    Raises:
        ValueError: the schedule is shorter, or the run begins at or behind the stop.
    """
    steps = step_count(scheduler)
    if stop is None:
        return None
    if stop == "auto":
        step = automatic(scheduler, space)
        chosen = None if step is None else entries_after(scheduler, step)
        return chosen if chosen is None or chosen > first else None
    if isinstance(stop, float):
        ends = ((step, entries_after(scheduler, step)) for step in range(1, steps + 1))
        return next(
            (
                entries
                for step, entries in ends
                if entries > first and is_reached(stop, step, mixture_after(scheduler, entries).sigma(space))
            ),
            None,
        )
    if stop > steps:
        raise ValueError(f"stop_after={stop}: this run has {steps} steps; ask for at most {steps}, or None")
    entries = entries_after(scheduler, stop)
    if entries <= first:
        begun = first // scheduler.order
        raise ValueError(
            f"stop_after={stop}: nothing is left to run, for this run begins after step {begun} of {steps} (strength "
            f"or denoising_start leaves the others out); ask for {begun + 1} to {steps}, or None"
        )
    return entries


def automatic(scheduler: Any, space: LatentSpace) -> int | None:
    """The step that stop_after="auto" means for this schedule; None: run to the end.

    Runs of fewer than 12 steps are those of distilled models and end clean. On the family's own scheduler it is the
    same share of the steps as in `space.stop`: at one shift, sigma depends on that share only. (FLUX.2's pipelines
    shift long runs less, so those stop at less noise.) On another scheduler (Karras and the like, DPM++, UniPC) it is
    the step whose sigma is nearest to the family's.
    """
    steps = step_count(scheduler)
    if steps < _FEW or space.stop is None:
        return None
    step, of, level = space.stop
    if is_family_own(scheduler):
        return round(steps * step / of)
    # At the end of the schedule lies the clean latent, which is no early stop.
    return min(
        range(1, steps),
        key=lambda step: abs(mixture_after(scheduler, entries_after(scheduler, step)).sigma(space) - level),
    )
