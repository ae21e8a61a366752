"""What can be said of the figures of many images: means with their number and interval, and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from pixdec.evaluate.results import plain

CONFIDENCE = 0.95
RESAMPLES = 2000
TOLERATED = 0.5  # of the images may fail; the mean of fewer says nothing of all


@dataclass(frozen=True)
class Mean:
    """The mean of `n` valid figures.

    Attributes:
        mean: NaN if there is none.
        std: sample deviation; NaN for fewer than two.
        n, failed, nan: figures that count, images that a method or metric failed on, figures that are NaN.
        withheld: there is no mean, because too many failed or are NaN.
        interval: (low, high) that holds the true mean with 95 %, by Student's t; NaN for fewer than two.
    """

    mean: float
    std: float
    n: int
    failed: int
    nan: int
    interval: tuple[float, float]
    withheld: bool = False

    @property
    def half_width(self) -> float:
        """Half the width of the interval: what stands behind ±."""
        return (self.interval[1] - self.interval[0]) / 2

    def to_json(self) -> dict[str, object]:
        """As JSON has it, which knows neither infinity nor NaN."""
        counts = {"n": self.n, "failed": self.failed, "nan": self.nan}
        return {"mean": plain(self.mean), "std": plain(self.std), **counts, "interval": [*map(plain, self.interval)]}


def mean_of(values: Sequence[float | None], tolerated: float = TOLERATED) -> Mean:
    """The mean of figures, of which None stands for a failure; NaN and failures are counted and left out. If their
    share is above `tolerated`, the mean is withheld."""
    failed = sum(value is None for value in values)
    valid = [value for value in values if value is not None and not math.isnan(value)]
    n, nan = len(valid), len(values) - failed - len(valid)
    if failed + nan > tolerated * len(values):
        return Mean(math.nan, math.nan, n, failed, nan, (math.nan, math.nan), withheld=True)
    mean = sum(valid) / n if n else math.nan  # fmean refuses infinities of both signs; a perfect PSNR is one
    if n < 2 or not all(map(math.isfinite, valid)):
        return Mean(mean, math.nan, n, failed, nan, (math.nan, math.nan))
    from scipy import stats

    std = statistics.stdev(valid)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * std / math.sqrt(n)
    return Mean(mean, std, n, failed, nan, (mean - half, mean + half))


def paired(ours: Mapping[str, float | None], theirs: Mapping[str, float | None], tolerated: float = TOLERATED) -> Mean:
    """The mean of ours less theirs, image by image: tighter than two means, for easy and hard images cancel.

    Args:
        ours, theirs: image -> figure; only images of both count, and those that lack a figure on either side as failed.
    """
    differences = list[float | None]()
    for image in ours:
        if image in theirs:
            a, b = ours[image], theirs[image]
            differences.append(None if a is None or b is None else a - b)
    return mean_of(differences, tolerated)


def bootstrap(counts: ArrayLike, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of Σ a / Σ b over images by drawing images again: counts (images, 2) of a and b."""
    values = np.asarray(counts, np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(values), (RESAMPLES, len(values)))
    sums = values[drawn].sum(axis=1)  # (resamples, 2)
    low, high = np.quantile(sums[:, 0] / sums[:, 1], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return float(low), float(high)
