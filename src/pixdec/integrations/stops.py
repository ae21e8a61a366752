"""Where a generator stops: `stop_after` of `capture` and `generate`, for pipelines and for any other generator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, cast

Stop: TypeAlias = int | float | Literal["auto"] | None
"""A whole number: after that many steps of the full schedule. A fraction between 0 and 1: after the first step whose
sigma is at most that. None: at the end. "auto": where published pipelines of the space may stop, else at the end."""


def check_stops(stop_after: Stop | Sequence[Stop]) -> list[Stop]:
    """One stop, or a list of them, as a list.

    Raises:
        ValueError: an empty list, or something that is no stop.
    """
    several = isinstance(stop_after, list | tuple)
    stops: list[Stop] = [*cast("Sequence[Stop]", stop_after)] if several else [cast("Stop", stop_after)]
    if not stops:
        raise ValueError("stop_after=[]: give at least one stop, for instance [22, 24, None]")
    for stop in stops:
        is_step = isinstance(stop, int) and not isinstance(stop, bool) and stop >= 1
        is_level = isinstance(stop, float) and 0 < stop < 1
        if not (stop is None or stop == "auto" or is_step or is_level):
            raise ValueError(
                f"stop_after={stop!r}: expected a number of steps from 1, a sigma between 0.0 and 1.0, None (run to "
                "the end) or 'auto'"
            )
    return stops


def is_reached(stop: float, step: int, level: float) -> bool:
    """Whether step number `step`, which ends at the noise level `level`, is where a number says to stop."""
    # A level of a generator is of float32, in which 0.2 is a little more than the 0.2 that was asked for.
    return step == stop if isinstance(stop, int) else level <= stop * (1 + 1e-6)
