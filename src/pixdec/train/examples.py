"""Where examples come from: packed shards, or a plain folder of images. Either gives the same examples for the same
number, so that a run can begin at any.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Protocol

import torch

from pixdec.train.data.photos import Photos, ahead
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.parallel import Share
from pixdec.train.recipes import AnyRecipe, DataSettings, PixelRecipe
from pixdec.train.stages.stage import Examples


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


def open_source(data: str | Path, recipe: AnyRecipe, share: Share) -> Source:
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
    if recipe.reads_text:
        raise ValueError(
            f"{data}: this recipe's network reads captions, which a plain folder has none of; pack it first: "
            f"pixdec data pack {data} -o shards"
        )
    photos = Photos(folder, recipe.data.crops.size, unreadable=recipe.data.unreadable)
    return FolderSource(photos, recipe, share)


def _place(recipe: AnyRecipe, share: Share, number: int) -> Place:
    """Part number `number` of a whole run."""
    step, part = divmod(number, recipe.loop.parts)
    return Place(step, part, share.places(recipe.loop.batch, part, recipe.loop.parts))


@dataclass(frozen=True)
class FolderSource:
    """Square crops of the pictures of a folder, and drawn pages, without captions."""

    photos: Photos
    recipe: AnyRecipe
    share: Share

    def begin(self, step: int) -> Iterator[tuple[Place, Examples]]:
        """One thread makes the next crops while the caller works."""
        loop, crops = self.recipe.loop, self.recipe.data.crops

        def make(number: int) -> tuple[Place, Examples]:
            place = _place(self.recipe, self.share, number)
            images = self.photos.batch(crops, loop.seed, place.step, loop.batch, place.places)
            return place, Examples(images, [""] * len(images))

        yield from map(ahead(make), count(step * loop.parts))


class PackedSource:
    """Batches of packed shards, in aspect buckets, with captions and what was computed beforehand."""

    def __init__(self, index: str, recipe: AnyRecipe, share: Share):
        self.recipe, self.share = recipe, share
        data = recipe.data
        self.settings = stream_settings(data, recipe, share)
        self.loader = StreamLoader(index, self.settings, rank=share.rank, ranks=share.count, workers=data.workers)

    def begin(self, step: int) -> Iterator[tuple[Place, Examples]]:
        """The loader's own workers read ahead."""
        first = step * self.recipe.loop.parts
        self.loader.load_state_dict({**self.loader.state_dict(), "batches": first * self.share.count})
        for number, batch in enumerate(self.loader, first):
            place = _place(self.recipe, self.share, number)
            text = batch.embeddings
            alike = None if text is None or isinstance(self.recipe, PixelRecipe) else torch.stack(text)
            yield place, Examples(batch.images, batch.captions, batch.latents, alike, text, batch.seeds)


def stream_settings(data: DataSettings, recipe: AnyRecipe, share: Share) -> StreamSettings:
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
        latents=data.precomputed and not isinstance(recipe, PixelRecipe),
        embeddings=data.precomputed and recipe.reads_text,
        unreadable=data.unreadable,
        streams=data.streams,
    )
