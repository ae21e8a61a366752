"""Arguments of public calls: what does not fit is refused in one line with the argument, its value and what to give."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any, SupportsIndex, cast

SEEDS = range(-(2**63), 2**64)  # what PyTorch's generators take


def whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """A whole number of any kind: Python's, numpy's, or a tensor's of one integer.

    Raises:
        ValueError: anything else (a float and a bool too), or a number outside least to most.
    """
    try:
        if isinstance(value, bool) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool"):
            raise TypeError
        number = operator.index(cast("SupportsIndex", value))
    except TypeError as error:
        raise ValueError(f"{name}={value!r}: expected a whole number{_between(least, most)}") from error
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name}={number}: expected a whole number{_between(least, most)}")
    return number


def seed_of(value: object) -> int:
    """A whole number that seeds a generator. Raises ValueError as `whole` does."""
    return whole("seed", value, SEEDS.start, SEEDS.stop - 1)


def check_range(settings: object, names: Iterable[str], least: float, most: float | None = None) -> None:
    """See that fields of settings are from least to most.

    Raises:
        ValueError: one is not, NaN too.
    """
    for name in names:
        value = getattr(settings, name)
        if not (value >= least and (most is None or value <= most)):
            raise ValueError(
                f"{name}={value}: expected {f'at least {least}' if most is None else f'{least} to {most}'}"
            )


def _between(least: int, most: int | None) -> str:
    if (least, most) == (SEEDS.start, SEEDS.stop - 1):
        return " from -2^63 to 2^64 - 1"
    return f" of at least {least}" if most is None else f" from {least} to {most}"


def items(value: object) -> list[Any] | None:
    """What a list, tuple, array or tensor of any kind holds; None for one thing: a number, a text, None."""
    try:
        return None if isinstance(value, str) else list(cast("Iterable[Any]", value))
    except TypeError:  # a tensor without axes says so only when it is asked
        return None
