"""Where examples come from: packed shards, or a plain folder of images. Either gives the same examples for the same
number, so that a run can begin at any.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pixdec.train.data.photos import Photos
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.parallel import Share
from pixdec.train.recipes import DataSettings, Recipe
from pixdec.train.stages import Examples


@dataclass(frozen=True)
class Place:
    """Which part of which step a process works at, and its places in the step's batch."""

    step: int
    part: int
    places: range


class Source(Protocol):
    """Examples of one process."""

    def begin(self, step: int) -> Iterator[tuple[Place, Examples]]:
        """All that is shown from step number `step` on, part by part; endless."""
        ...


def open_source(data: str | Path, recipe: Recipe, share: Share) -> Source:
    """The examples of `data` for one of `share.count` processes: packed shards (a folder with index.jsonl, such an
    index, or their URL), or a folder of images.

    Raises:
        ValueError: nothing usable is there, or the batch cannot be shared out.
    """
    share.places(recipe.loop.batch, 0, recipe.loop.parts)
    text = str(data)
    folder = Path(text)
    if "://" in text or text.endswith(".jsonl") or (folder / "index.jsonl").exists():
        return PackedSource(text, recipe, share)
    if not folder.is_dir():
        raise ValueError(f"{data}: no such folder; name a folder of images, or shards that `pixdec data pack` made")
    if recipe.network.backbone.text_width is not None:
        raise ValueError(
            f"{data}: this recipe's network reads captions, which a plain folder has none of; pack it first: "
            f"pixdec data pack {data} -o shards"
        )
    return FolderSource(Photos(folder), recipe, share)


def _places(recipe: Recipe, share: Share, start: int) -> Iterator[Place]:
    step = start
    while True:
        for part in range(recipe.loop.parts):
            yield Place(step, part, share.places(recipe.loop.batch, part, recipe.loop.parts))
        step += 1


@dataclass(frozen=True)
class FolderSource:
    """Square crops of the pictures of a folder, and drawn pages, without captions."""

    photos: Photos
    recipe: Recipe
    share: Share

    def begin(self, step: int) -> Iterator[tuple[Place, Examples]]:
        """One thread makes the next crops while the caller works."""
        loop, crops = self.recipe.loop, self.recipe.data.crops

        def make(place: Place) -> tuple[Place, Examples]:
            images = self.photos.batch(crops, loop.seed, place.step, loop.batch, place.places)
            return place, Examples(images, [""] * len(images))

        places = _places(self.recipe, self.share, step)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(make, next(places))
            while True:
                ready, coming = coming.result(), pool.submit(make, next(places))
                yield ready


class PackedSource:
    """Batches of packed shards, in aspect buckets, with captions and what was computed beforehand."""

    def __init__(self, index: str, recipe: Recipe, share: Share):
        self.recipe, self.share = recipe, share
        data = recipe.data
        self.settings = stream_settings(data, recipe, share)
        self.loader = StreamLoader(index, self.settings, rank=share.rank, ranks=share.count, workers=data.workers)
        if self.loader.images == 0:
            raise ValueError(f"{index}: no image is as large as a bucket of base {data.base}; set a smaller data.base")

    def begin(self, step: int) -> Iterator[tuple[Place, Examples]]:
        """The loader's own workers read ahead."""
        batches = step * self.recipe.loop.parts * self.share.count
        self.loader.load_state_dict({**self.loader.state_dict(), "batches": batches})
        for place, batch in zip(_places(self.recipe, self.share, step), self.loader, strict=False):
            yield place, Examples(batch.images, batch.captions, batch.latents, batch.embeddings)


def stream_settings(data: DataSettings, recipe: Recipe, share: Share) -> StreamSettings:
    """The loader's settings for one process of a run."""
    each = len(share.places(recipe.loop.batch, 0, recipe.loop.parts))
    return StreamSettings(
        base=data.base,
        batch=each,
        seed=recipe.loop.seed,
        shuffle=data.shuffle,
        multiple=data.multiple,
        fit=data.fit,
        pages=data.pages,
        latents=data.precomputed,
        embeddings=data.precomputed and recipe.network.backbone.text_width is not None,
        unreadable=data.unreadable,
        streams=data.streams,
    )
