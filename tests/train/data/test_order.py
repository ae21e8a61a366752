"""The order of training: a pure function of the seed, in which every image comes once in an epoch."""

from __future__ import annotations

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from pixdec.train.data.order import Leg, Order, Planned

Place = tuple[int, ...]


def shards(count: int = 7, seed: int = 0, kinds: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(-1, kinds, rng.integers(4, 12)) for _ in range(count)]


def batches(
    buckets_of: list[np.ndarray],
    many: int,
    stream: int = 0,
    streams: int = 1,
    seed: int = 3,
    start: int = 0,
    **more: int,
) -> list[tuple[int, list[Place]]]:
    order = Order(buckets_of, streams, seed, **{"batch": 4, "shuffle": 10, **more})
    every = (planned for leg in order.legs(stream, start) for planned in leg.batches)
    return [(planned.bucket, [tuple(row) for row in planned.rows.tolist()]) for planned in islice(every, many)]


def test_batches_are_of_one_bucket():
    buckets_of = shards()
    for bucket, places in batches(buckets_of, 60):
        assert len(places) == 4
        assert {int(buckets_of[shard][position]) for _, _, shard, position in places} == {bucket}


def test_every_image_with_a_bucket_comes_once_in_an_epoch_and_none_is_dropped():
    buckets_of = shards()
    kept = sum(int((each >= 0).sum()) for each in buckets_of)
    for streams in (1, 2, 3):
        counts = Counter(
            (epoch, shard, position)
            for stream in range(streams)
            for _, places in batches(buckets_of, 100, stream, streams)
            for epoch, _, shard, position in places
        )
        assert set(counts.values()) == {1}
        complete = Counter(epoch for epoch, _, _ in counts)
        assert [complete[epoch] for epoch in range(3)] == [kept] * 3
        assert {(shard, position) for epoch, shard, position in counts if epoch == 1} == {
            (shard, position)
            for shard, each in enumerate(buckets_of)
            for position in np.flatnonzero(each >= 0).tolist()
        }


def test_order_depends_on_seed_epoch_and_stream_alone():
    buckets_of = shards()
    once = batches(buckets_of, 50)
    assert once == batches(buckets_of, 50)
    assert once != batches(buckets_of, 50, seed=4)
    by_epoch = [[place[2:] for _, places in once for place in places if place[0] == epoch] for epoch in (0, 1)]
    assert by_epoch[0] != by_epoch[1]


@pytest.mark.parametrize("start", [0, 1, 5, 11, 12, 40, 41])
def test_starting_later_is_the_same_order(start: int):
    buckets_of = shards()
    assert batches(buckets_of, 20, 1, 2, start=start) == batches(buckets_of, 20 + start, 1, 2)[start:]


def consume(order: list[Leg]) -> tuple[int, set[Place]]:
    """Play the loader: read in reading order, take out what batches need; returns the most that was held at a time."""
    held: set[Place] = set()
    ever: set[Place] = set()
    most = 0
    for leg in order:
        reading = iter([tuple(row) for row in leg.reading.tolist()])
        for planned in leg.batches:
            places = {tuple(row) for row in planned.rows.tolist()}
            while places - held:
                place = next(reading)  # StopIteration: a batch needs what is never read
                assert place not in ever
                held.add(place)
                ever.add(place)
            most = max(most, len(held))
            held -= places
        rest = set(reading)
        assert not rest & ever
        held |= rest
        ever |= rest
    return most, ever


@pytest.mark.parametrize("start", [0, 3, 17, 30])
def test_what_is_read_is_what_is_needed_and_read_once(start: int):
    buckets_of = shards(9)
    order = list(islice(Order(buckets_of, 2, seed=1, batch=4, shuffle=6).legs(0, start), 5))
    most, ever = consume(order)
    used = {tuple(row) for leg in order for planned in leg.batches for row in planned.rows.tolist()}
    assert used <= ever
    assert most <= 6 + 3 * 3 + 4  # the shuffle buffer, what is left over in three buckets, and a batch
    turns = [(epoch, turn) for leg in order for epoch, turn, _, _ in leg.reading.tolist()]
    assert turns == sorted(turns)  # shards one after the other
    before = {tuple(row) for planned in earlier(buckets_of, start) for row in planned.rows.tolist()}
    assert not ever & before


def earlier(buckets_of: list[np.ndarray], start: int) -> list[Planned]:
    order = Order(buckets_of, 2, seed=1, batch=4, shuffle=6).legs(0)
    return list(islice((planned for leg in order for planned in leg.batches), start))


def test_the_buffer_shuffles_and_no_further_than_it_is_long():
    buckets_of = [np.zeros(1000, dtype=np.int64)]

    def positions(shuffle: int) -> np.ndarray:
        return np.array([place[3] for _, places in batches(buckets_of, 250, shuffle=shuffle) for place in places])

    assert np.array_equal(positions(0), np.arange(1000))
    moved = positions(100) - np.arange(1000)
    assert np.abs(moved).max() < 100
    assert np.abs(moved).mean() > 20
    whole = positions(10**6)
    assert abs(np.corrcoef(whole, np.arange(1000))[0, 1]) < 0.1


def test_a_rare_bucket_is_carried_over_until_it_is_full():
    buckets_of = [np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 0])]
    found = batches(buckets_of, 60)
    rare = [places for bucket, places in found if bucket == 1]
    assert [place[0] for place in rare[0]] == [0, 1, 2, 3]
    assert {place[2:] for place in rare[0]} == {(0, 4)}


def test_more_images_in_a_batch_than_in_an_epoch():
    found = batches([np.array([0, -1, 0])], 3, batch=5)
    assert [[place[0] for place in places] for _, places in found] == [
        [0, 0, 1, 1, 2],
        [2, 3, 3, 4, 4],
        [5, 5, 6, 6, 7],
    ]
    assert batches([np.array([0, -1, 0])], 2, batch=5, start=1) == found[1:]
