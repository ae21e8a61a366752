"""Where examples come from: packed shards, or a plain folder of images. Either gives the same examples for the same
number, so that a run can begin at any.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import count
from pathlib import Path
from typing import Protocol

from pixdec.train.data.photos import Photos, ahead
from pixdec.train.data.sample import Examples
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.parallel import Share
from pixdec.train.recipes import AnyRecipe, PixelRecipe


class Source(Protocol):
    """Examples of one process."""

    def begin(self, step: int) -> Iterator[Examples]:
        """All that is shown from step number `step` on, part by part; endless."""
        ...

    @property
    def digest(self) -> str:
        """Tells one set of examples from another; "" where it is not known."""
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


@dataclass(frozen=True)
class FolderSource:
    """Square crops of the pictures of a folder, and drawn pages, without captions."""

    photos: Photos
    recipe: AnyRecipe
    share: Share
    digest: str = ""

    def begin(self, step: int) -> Iterator[Examples]:
        """One thread makes the next crops while the caller works."""
        loop, crops = self.recipe.loop, self.recipe.data.crops

        def make(number: int) -> Examples:
            step, part = divmod(number, loop.parts)
            places = self.share.places(loop.batch, part, loop.parts)
            images = self.photos.batch(crops, loop.seed, step, loop.batch, places)
            return Examples(images, [""] * len(images))

        yield from map(ahead(make), count(step * loop.parts))


class PackedSource:
    """Batches of packed shards, in aspect buckets, with captions and what was computed beforehand."""

    def __init__(self, index: str, recipe: AnyRecipe, share: Share):
        self.parts, data = recipe.loop.parts, recipe.data
        shared = {each.name: getattr(data, each.name) for each in fields(StreamSettings) if hasattr(data, each.name)}
        settings = StreamSettings(
            **shared,
            batch=len(share.places(recipe.loop.batch, 0, self.parts)),
            seed=recipe.loop.seed,
            latents=data.precomputed and not isinstance(recipe, PixelRecipe),
            embeddings=data.precomputed and recipe.reads_text,
        )
        self.loader = StreamLoader(index, settings, rank=share.rank, ranks=share.count, workers=data.workers)

    @property
    def digest(self) -> str:
        """Of names and sizes: the order follows from them."""
        return self.loader.index.digest()

    def begin(self, step: int) -> Iterator[Examples]:
        """The loader's own workers read ahead."""
        return self.loader.batches(step * self.parts)
