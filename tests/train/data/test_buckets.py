"""Aspect buckets: the published sizes, the rule at other bases, and which bucket an image falls into."""

from __future__ import annotations

import numpy as np
import pytest

from pixdec.train.data.buckets import Bucket, assign, buckets


def test_at_2048_they_are_those_of_the_paper():
    expected = {(2048, 2048), (2304, 1728), (1728, 2304), (2688, 1536), (1536, 2688)}
    assert {(bucket.width, bucket.height) for bucket in buckets(2048)} == expected
    assert buckets(2048)[0] == Bucket(2048, 2048)


@pytest.mark.parametrize("base", [256, 512, 768, 1024, 1536, 2880, 4096])
def test_at_any_base(base: int):
    for bucket in buckets(base):
        assert bucket.width % 64 == bucket.height % 64 == 0
        assert bucket.width * bucket.height <= base**2
        assert (bucket.width + 64) * (bucket.height + 64) > base**2
        assert Bucket(bucket.height, bucket.width) in buckets(base)


def test_other_multiples_and_aspects():
    assert buckets(192, multiple=16) == (
        Bucket(192, 192),
        Bucket(208, 160),
        Bucket(160, 208),
        Bucket(256, 144),
        Bucket(144, 256),
    )
    assert buckets(100, 1, [(4, 1)]) == (Bucket(200, 50),)


def test_sizes_that_fall_together_are_there_once():
    assert buckets(90) == (Bucket(64, 64),)


def test_a_base_that_is_too_small_says_which_is_not():
    with pytest.raises(ValueError, match="base=63: expected a base of at least 64"):
        buckets(63)
    assert buckets(64) == (Bucket(64, 64),)
    assert buckets(74, aspects=[(4, 3)])
    for base in (0, -2048):
        with pytest.raises(ValueError, match=f"base={base}"):
            buckets(base)


@pytest.mark.parametrize(
    ("size", "bucket"),
    [
        ((2048, 2048), (2048, 2048)),
        ((6000, 4000), (2304, 1728)),  # 3:2 is nearer to 4:3 than to 7:4
        ((4000, 6000), (1728, 2304)),
        ((3840, 2160), (2688, 1536)),
        ((9000, 2000), (2688, 1536)),
        ((2320, 2048), (2048, 2048)),
        ((2700, 1600), (2688, 1536)),
        ((2047, 2047), None),
        ((2303, 1800), None),
        ((0, 0), None),
    ],
)
def test_nearest_aspect_that_the_image_covers(size: tuple[int, int], bucket: tuple[int, int] | None):
    choice = buckets(2048)
    at = int(assign(np.array([size]), choice)[0])
    assert (None if at < 0 else (choice[at].width, choice[at].height)) == bucket


def test_an_image_too_small_for_its_nearest_aspect_takes_the_next():
    choice = buckets(2048)
    wide = np.array([(2500, 1700)])  # nearest is 4:3, which is 1728 high
    assert int(assign(wide, choice)[0]) == -1
    assert choice[int(assign(np.array([(2700, 1700)]), choice)[0])] == Bucket(2688, 1536)
    assert choice[int(assign(np.array([(2700, 1790)]), choice)[0])] == Bucket(2304, 1728)


def test_assign_takes_many_and_none():
    assert assign(np.empty((0, 2), dtype=np.int32), buckets(2048)).shape == (0,)
    sizes = np.array([(4096, 4096), (10, 10), (2160, 3840)], dtype=np.int32)
    assert assign(sizes, buckets(2048)).tolist() == [0, -1, 4]
