"""Aspect buckets: the few image sizes that batches come in, so that every batch has one size.

A bucket of aspect a:b at base size S has the sides S·sqrt(a/b) and S·sqrt(b/a), each rounded down to a multiple of 64
(decoder scale 4 × latent factor 16). All hold about S² pixels. At base 2048 these are the sizes PiD is trained at
(arXiv 2605.23902): 2048x2048, 2304x1728 and 2688x1536, and their transposes; the rule is the simplest that gives them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ASPECTS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))


@dataclass(frozen=True, order=True)
class Bucket:
    """One image size in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


def buckets(base: int, multiple: int = 64, aspects: Sequence[tuple[int, int]] = ASPECTS) -> tuple[Bucket, ...]:
    """The buckets at a base size; where a small base rounds two to the same size, it is there once, and one with a side
    of 0 is not there.

    Small bases are far from their aspects with multiples of 64 (4:3 at base 512 is 576x384): take a smaller `multiple`
    if the decoder allows one (scale × latent factor, or half of it for spaces of factor 8).

    Raises:
        ValueError: the base is so small that there are none.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple}: expected at least 1")
    found: dict[Bucket, None] = {}
    for a, b in aspects:
        if a < 1 or b < 1:
            raise ValueError(f"aspect {a}:{b}: expected two whole numbers of at least 1")
        bucket = Bucket(_side(base, a, b, multiple), _side(base, b, a, multiple))
        if min(bucket.width, bucket.height) > 0:
            found[bucket] = None
    if not found:
        raise ValueError(f"base={base}: expected a base of at least {multiple}, or a smaller multiple than {multiple}")
    return tuple(found)


def _side(base: int, a: int, b: int, multiple: int) -> int:
    return math.isqrt(max(0, base) ** 2 * a // b) // multiple * multiple  # in integers: 2048·sqrt(9/16) is 1536 exactly


def assign(sizes: NDArray[np.integer], choice: Sequence[Bucket]) -> NDArray[np.int64]:
    """The bucket of each image, sizes (N,2) as (width, height) -> (N,) positions in `choice`.

    It is the one of nearest aspect (by its logarithm; of equals the first) among those that the image covers without
    being enlarged: a decoder that learns from enlarged images learns to blur. -1 where there is none.
    """
    sides = np.array([(bucket.width, bucket.height) for bucket in choice], dtype=np.int64)  # (K,2)
    measured = np.asarray(sizes, dtype=np.int64).reshape(-1, 2)
    covers = (measured[:, None, :] >= sides[None]).all(axis=2)  # (N,K)
    aspects = np.log(np.maximum(measured, 1)) @ np.array([1.0, -1.0])
    distance = np.abs(aspects[:, None] - (np.log(sides) @ np.array([1.0, -1.0]))[None])
    distance = np.where(covers, distance, np.inf)
    return np.where(np.isfinite(distance.min(axis=1)), distance.argmin(axis=1), -1)
