"""The order of training, as a pure function of (seed, epoch): no shard is opened to know it.

A *stream* is an endless sequence of batches. In each epoch the shards are dealt out anew to the streams; a stream reads
its shards one after the other, its images pass through a shuffle buffer, and as soon as one bucket has enough of them
they are a batch. What is left over in the buckets at the end of an epoch is carried into the next: no image is dropped.

Ranks and workers share out the streams, so that the position of a whole run is one number: how many batches it has had.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]  # (N,4): epoch, turn (the shard's place in the stream's epoch), shard, position in the shard

_DEAL, _SHUFFLE = 1, 2  # random numbers for different purposes come from different sequences


class Planned(NamedTuple):
    """One batch: its bucket, and its images (batch,4)."""

    bucket: int
    rows: Rows


class Leg(NamedTuple):
    """One epoch of a stream, or what is left of it: the batches that come next, and all images that have to be read for
    them and for what is carried over, in the order in which the shards are read."""

    batches: list[Planned]
    reading: Rows


@dataclass(frozen=True, eq=False)
class Order:
    """The order in which `streams` streams have the images of some shards.

    Attributes:
        buckets_of: for each shard the bucket of each of its images, -1 for one that is left out.
        batch: images in a batch.
        shuffle: an image moves by less than so many places, so as many are held at most.
    """

    buckets_of: Sequence[NDArray[np.int64]]
    streams: int
    seed: int
    batch: int
    shuffle: int

    def legs(self, stream: int, start: int = 0) -> Iterator[Leg]:
        """The endless stream number `stream`, from its batch number `start` on.

        Starting later costs a pass over the numbers of the earlier epochs (a second for a few million images).
        """
        assert 0 <= stream < self.streams <= len(self.buckets_of), "every stream needs a shard in every epoch"
        assert any((buckets >= 0).any() for buckets in self.buckets_of), "else no batch would ever be full"
        carried: dict[int, Rows] = {}
        done = 0
        first = True
        for epoch in count():
            rows, buckets = self._epoch(stream, epoch)
            batches, carried = _cut(rows, buckets, carried, self.batch)
            done += len(batches)
            if first and done <= start:
                continue
            coming = batches[max(0, start - done + len(batches)) :]
            needed = np.concatenate([_NOTHING, *(each.rows for each in coming), *carried.values()])
            if not first:  # then what was carried into this epoch has been read in an earlier leg
                needed = needed[needed[:, 0] == epoch]
            first = False
            yield Leg(coming, needed[np.lexsort((needed[:, 3], needed[:, 1], needed[:, 0]))])

    def _epoch(self, stream: int, epoch: int) -> tuple[Rows, NDArray[np.int64]]:
        """A stream's images of one epoch in the order in which they leave the shuffle buffer, and their buckets."""
        every = np.random.default_rng((self.seed, epoch, _DEAL)).permutation(len(self.buckets_of))
        dealt = every[stream :: self.streams]
        parts = [
            np.stack(np.broadcast_arrays(epoch, turn, shard, np.arange(len(self.buckets_of[shard]))), axis=1)
            for turn, shard in enumerate(dealt)
        ]
        rows = np.concatenate([_NOTHING, *parts])
        buckets = np.concatenate([self.buckets_of[shard] for shard in dealt])
        kept = buckets >= 0
        rows, buckets = rows[kept], buckets[kept]
        # Image i leaves the buffer at "time" i + u·shuffle, u uniform in [0, 1).
        delay = np.random.default_rng((self.seed, epoch, _SHUFFLE, stream)).random(len(rows))
        order = np.argsort(np.arange(len(rows)) + self.shuffle * delay, kind="stable")
        return rows[order], buckets[order]


def _cut(
    rows: Rows, buckets: NDArray[np.int64], carried: dict[int, Rows], batch: int
) -> tuple[list[Planned], dict[int, Rows]]:
    """Whole batches in the order in which they become full, and the images of each bucket that are left over."""
    full: list[tuple[int, Planned]] = []
    left: dict[int, Rows] = {}
    for bucket in sorted({*carried, *np.unique(buckets).tolist()}):
        at = np.flatnonzero(buckets == bucket)
        earlier = carried.get(bucket, _NOTHING)
        line = np.concatenate([earlier, rows[at]])
        whole = len(line) // batch
        for i in range(whole):
            completed_by = int(at[(i + 1) * batch - 1 - len(earlier)])
            full.append((completed_by, Planned(bucket, line[i * batch : (i + 1) * batch])))
        left[bucket] = line[whole * batch :]
    full.sort(key=lambda item: item[0])
    return [planned for _, planned in full], left


_NOTHING: Rows = np.empty((0, 4), dtype=np.int64)
