"""Means, intervals and paired differences against scipy and by hand."""

import math

import numpy as np
import pytest

from pixdec.evaluate.statistics import mean_of, paired


def test_the_interval_is_students() -> None:
    stats = pytest.importorskip("scipy.stats")
    values = list(np.random.default_rng(0).normal(5, 2, 20))
    found = mean_of(values)
    expected = stats.t.interval(0.95, 19, np.mean(values), stats.sem(values))
    assert found.interval == pytest.approx(expected)
    assert (found.mean, found.std, found.n) == (
        pytest.approx(np.mean(values)),
        pytest.approx(np.std(values, ddof=1)),
        20,
    )


def test_what_does_not_count_is_counted() -> None:
    found = mean_of([1.0, None, math.nan, 3.0, None], tolerated=0.6)
    assert (found.mean, found.n, found.failed, found.nan) == (2.0, 2, 2, 1)
    alone = mean_of([4.0])
    assert alone.mean == 4
    assert math.isnan(alone.half_width)
    assert mean_of([math.inf, 1.0]).mean == math.inf
    assert math.isnan(mean_of([None]).mean)


def test_the_mean_of_too_few_is_withheld() -> None:
    found = mean_of([1.0, None, math.nan, 3.0, None])
    assert (found.withheld, found.n, found.failed, found.nan) == (True, 2, 2, 1)
    assert math.isnan(found.mean)
    assert not mean_of([1.0, None]).withheld
    assert paired({"a": 1.0, "b": 2.0, "c": None}, {"a": None, "b": 1.0, "c": 1.0}).withheld


def test_pairs_cancel_what_images_share() -> None:
    ours = {"a": 11.0, "b": 51.0, "c": 92.0, "d": 1.0}
    theirs = {"a": 10.0, "b": 50.0, "c": 90.0, "e": 7.0}
    found = paired(ours, theirs)
    assert (found.n, found.mean) == (3, pytest.approx(4 / 3))
    assert found.half_width < 1.5
    assert paired({"a": 1.0, "b": 2.0}, {"a": None, "b": 1.0}).failed == 1
