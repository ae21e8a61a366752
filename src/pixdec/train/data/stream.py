"""The streaming loader: batches out of WebDataset shards, in an order that is a pure function of the seed.

    loader = StreamLoader("shards/", StreamSettings(base=1024, batch=8), workers=4)
    for batch in loader.batches(start=120):  # endless; the first 120 have been seen
        ...

Where a run is, is the number of batches it has had. After a restart only the images that are still to come are read,
from the shards in which they lie.
"""

import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from pixdec.io.arguments import check_range
from pixdec.train.data.buckets import assign, buckets
from pixdec.train.data.fit import CENTER
from pixdec.train.data.folder import read_files
from pixdec.train.data.order import Order, Planned, Rows
from pixdec.train.data.sample import Examples, Sample, SampleSettings, collate, make_page, make_sample
from pixdec.train.data.shards import Index, Raw, ShardError, read_index, read_shard
from pixdec.train.data.urls import is_local

_CONTENT, _PAGE = 11, 12  # `order` has the other purposes of random numbers
_ATTEMPTS = 3  # for a shard that is not on this machine


@dataclass(frozen=True, kw_only=True)
class StreamSettings(SampleSettings):
    """Everything that decides which batches come, besides the shards; `SampleSettings` have the rest.

    Attributes:
        base: base size of the aspect buckets, `multiple` what their sides are multiples of (`buckets`).
        batch: images in a batch, of one rank.
        shuffle: images in the shuffle buffer of each stream; they are held as they lie in the shard, undecoded.
        pages: share of the images that give their place to a page of rendered text; other images in every epoch.
        unreadable: what becomes of a shard that cannot be read, or an image that cannot be decoded. "stop" raises;
            "skip" warns, and others of the same batch stand in (for a whole batch, the next one), so that no rank has
            fewer batches than the others.
        streams: how many streams the shards are dealt to; None: one for each worker of each rank. A run that is to be
            resumed with another number of ranks or workers names a common multiple of them here: the batches are then
            the same, in the same order over all ranks.
    """

    base: int
    batch: int
    seed: int = 0
    shuffle: int = 1000
    multiple: int = 64
    pages: float = 0.0
    unreadable: Literal["stop", "skip"] = "stop"
    streams: int | None = None

    def __post_init__(self) -> None:
        check_range(self, ["batch"], 1)
        check_range(self, ("seed", "shuffle"), 0)
        check_range(self, ["pages"], 0, 1)
        if self.pages and (self.latents or self.embeddings):
            raise ValueError(f"pages={self.pages}: pages have no precomputed tensors; encode while training instead")
        if self.latents and self.fit != CENTER:
            raise ValueError(
                "latents are precomputed from the middle of each image; set fit=CENTER (pixdec.train.data.fit)"
            )
        if self.unreadable not in ("stop", "skip"):
            raise ValueError(f"unreadable={self.unreadable!r}: expected 'stop' or 'skip'")


class StreamLoader:
    """One rank's batches, without end.

    `rank`, `ranks`: None takes those of torch.distributed if it is initialised, else the only one. `workers`: processes
    that read and decode; 0 does it in this one.

    Attributes: `index`; `settings`; `buckets`; `images`, how many have a bucket; `left_out`, how many have none.

    Raises:
        ValueError: no index, or one of something else; no image as large as any bucket; fewer shards than streams; a
            number of streams that ranks and workers cannot share out; latents of another base.
    """

    def __init__(
        self,
        index: Index | str | Path,
        settings: StreamSettings,
        *,
        rank: int | None = None,
        ranks: int | None = None,
        workers: int = 0,
    ):
        self.index = index if isinstance(index, Index) else read_index(index)
        self.settings, self.workers = settings, workers
        self.rank, self.ranks = _place(rank, ranks)
        hands = self.ranks * max(1, workers)
        self.streams = hands if settings.streams is None else settings.streams
        if self.streams % hands:
            raise ValueError(
                f"streams={self.streams}: expected a multiple of {self.ranks} ranks x {max(1, workers)} workers"
            )
        if len(self.index.shards) < self.streams:
            raise ValueError(
                f"{len(self.index.shards)} shards for {self.streams} streams ({self.ranks} ranks x {max(1, workers)} "
                "workers): each needs one; pack smaller shards (--shard-mb), or take fewer workers"
            )
        self.buckets = buckets(settings.base, settings.multiple)
        self._buckets_of = [assign(shard.sizes, self.buckets) for shard in self.index.shards]
        self.images = int(sum((each >= 0).sum() for each in self._buckets_of))
        self.left_out = self.index.images - self.images
        self._check_contents()

    def __iter__(self) -> Iterator[Examples]:
        return self.batches()

    def batches(self, start: int = 0) -> Iterator[Examples]:
        """From this rank's batch number `start` on."""
        source = _Source(self, start)
        if self.workers:
            # Without a batch size of its own it passes on what the workers make, from each in turn. It would draw a
            # seed for them from the generator that the training draws its noise from.
            generator = torch.Generator().manual_seed(0)
            source = DataLoader(source, None, num_workers=self.workers, collate_fn=_as_it_is, generator=generator)
        for item in source:
            if isinstance(item, _Failure):
                raise ValueError(item.message)
            yield item

    def batches_of(self, stream: int, start: int) -> Iterator[Examples]:
        """The batches of one stream from number `start` on (what a worker does)."""
        waiting = 0
        for samples in self._samples_of(stream, start):
            good = [sample for sample in samples if sample is not None]
            if not good:
                waiting += 1
                if waiting > self.images:
                    raise ValueError(f"no image could be read in {waiting} batches; see the warnings")
                continue
            batch = collate([good[i % len(good)] for i in range(self.settings.batch)])
            for _ in range(waiting + 1):
                yield batch
            waiting = 0

    def _samples_of(self, stream: int, start: int) -> Iterator[list[Sample | None]]:
        """For each batch its samples; None is one that was skipped."""
        settings = self.settings
        order = Order(self._buckets_of, self.streams, settings.seed, settings.batch, settings.shuffle)
        held: dict[tuple[int, ...], Raw | None] = {}
        for leg in order.legs(stream, start):
            reading = self._read(leg.reading)
            for planned in leg.batches:
                places = [tuple(row.tolist()) for row in planned.rows]
                while any(place not in held for place in places):
                    held.update([next(reading)])
                yield [self._sample(planned, place, held.pop(place)) for place in places]
            held.update(reading)  # what is carried over into the next epoch

    def _read(self, rows: Rows) -> Iterator[tuple[tuple[int, ...], Raw | None]]:
        """Rows in reading order, each with what lies in the shard; None where it cannot be read, or need not be."""
        starts = np.flatnonzero(np.diff(rows[:, :2], axis=0, prepend=-1).any(axis=1))
        for visit in np.split(rows, starts[1:]):
            places: list[tuple[int, ...]] = [tuple(row) for row in visit.tolist()]
            replaced = {place for place in places if self._is_page(place)}
            yield from ((place, None) for place in places if place in replaced)
            yield from self._visit([place for place in places if place not in replaced])

    def _visit(self, places: list[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Raw | None]]:
        """Images of one shard. A remote one is tried again from where it failed."""
        if not places:
            return
        shard = self.index.shards[places[0][2]]
        by_position = {place[3]: place for place in places}
        attempts = 1 if is_local(shard.url) else _ATTEMPTS
        for attempt in range(1, attempts + 1):
            try:
                wanted = list(by_position)
                for position, raw in read_files(shard.files, wanted) if shard.files else read_shard(shard.url, wanted):
                    yield by_position.pop(position), raw
                return
            except ShardError as error:
                if attempt < attempts:
                    time.sleep(2**attempt)
                    continue
                self._skip(str(error))
        yield from ((place, None) for place in by_position.values())

    def _sample(self, planned: Planned, place: tuple[int, ...], raw: Raw | None) -> Sample | None:
        epoch, _, shard, position = place
        bucket = self.buckets[planned.bucket]
        rng = self._random(place, _CONTENT)
        if self._is_page(place):
            return make_page(f"page-{epoch}-{shard}-{position}", bucket, rng)
        if raw is None:
            return None
        width, height = self.index.shards[shard].sizes[position].tolist()
        try:
            return make_sample(raw, (width, height), bucket, self.settings, rng)
        except ValueError as error:
            whole = self.index.shards[shard]
            self._skip(str(error) if whole.files else f"{whole.url}: {error}")
            return None

    def _is_page(self, place: tuple[int, ...]) -> bool:
        return self.settings.pages > 0 and self._random(place, _PAGE).random() < self.settings.pages

    def _random(self, place: tuple[int, ...], purpose: int) -> np.random.Generator:
        """Random numbers of one image in one epoch, whichever stream it falls to."""
        epoch, _, shard, position = place
        return np.random.default_rng((self.settings.seed, epoch, shard, position, purpose))

    def _skip(self, message: str) -> None:
        if self.settings.unreadable == "stop":
            raise ValueError(f"{message}; unreadable='skip' goes on without it")
        warnings.warn(f"{message}; others stand in for it", stacklevel=2)

    def _check_contents(self) -> None:
        unreadable = int(sum((shard.sizes == 0).all(axis=1).sum() for shard in self.index.shards))
        if unreadable == self.index.images:
            raise ValueError(f"none of {unreadable} images can be used; `pixdec data index` says why")
        if not self.images:
            sides = [tuple(size) for shard in self.index.shards for size in shard.sizes.tolist()]
            largest = max(sides, key=lambda size: size[0] * size[1], default=(0, 0))
            raise ValueError(
                f"base={self.settings.base}: no image covers any of its buckets {', '.join(map(str, self.buckets))}; "
                f"the largest of {len(sides)} has {largest[0]}x{largest[1]} pixels: take a smaller base"
            )
        small = self.left_out - unreadable
        for count, what in (
            (small, f"are smaller than every bucket of base {self.settings.base}"),
            (unreadable, "cannot be used, as `pixdec data index` found"),
        ):
            if count:
                message = f"{count} of {self.index.images} images {what} and are left out"
                warnings.warn(message, stacklevel=3)
        if self.settings.embeddings and self.index.embeddings is None:
            raise ValueError("embeddings: these shards hold none; pack them with --embeddings")
        if self.settings.latents:
            made = self.index.latents
            if made is None:
                raise ValueError("latents: these shards hold none; pack them with --latents")
            if (made["base"], made["multiple"]) != (self.settings.base, self.settings.multiple):
                raise ValueError(
                    f"base={self.settings.base}, multiple={self.settings.multiple}: the latents in these shards were "
                    f"made for base={made['base']}, multiple={made['multiple']}"
                )


@dataclass(frozen=True)
class _Failure:
    """A worker's error, as a message: raised there it would arrive with a page of traceback."""

    message: str


class _Source(IterableDataset["Examples | _Failure"]):
    """The batches start, start+1, … of one rank, or those of them that a worker makes: every `workers`-th."""

    def __init__(self, loader: StreamLoader, start: int):
        self.loader, self.start = loader, start

    def __iter__(self) -> Iterator["Examples | _Failure"]:
        loader, info = self.loader, get_worker_info()
        first, stride = (0, 1) if info is None else (info.id, info.num_workers)
        iterators: dict[int, Iterator[Examples]] = {}
        number = self.start + first
        try:
            while True:
                # Batch n of rank r is batch n·ranks + r of the whole run; the streams take turns.
                turn, stream = divmod(number * loader.ranks + loader.rank, loader.streams)
                if stream not in iterators:
                    iterators[stream] = loader.batches_of(stream, turn)
                yield next(iterators[stream])
                number += stride
        except (ValueError, OSError) as error:
            yield _Failure(" ".join(str(error).split()))


def _place(rank: int | None, ranks: int | None) -> tuple[int, int]:
    if rank is None and ranks is None:
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
    if rank is None or ranks is None or not 0 <= rank < ranks:
        raise ValueError(f"rank={rank}, ranks={ranks}: expected both, with 0 <= rank < ranks, or neither")
    return rank, ranks


def _as_it_is(item: object) -> object:
    return item
