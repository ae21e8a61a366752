"""Where examples come from: packed shards, or a plain folder of images, which is read as if it were packed."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from pixdec.train.data.buckets import buckets
from pixdec.train.data.folder import folder_index
from pixdec.train.data.sample import Examples
from pixdec.train.data.shards import INDEX
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.parallel import Share
from pixdec.train.recipes import AnyRecipe, PixelRecipe


class Source:
    """The examples of one process: batches in aspect buckets, with captions and what was computed beforehand."""

    def __init__(self, data: str | Path, recipe: AnyRecipe, share: Share):
        """`data`: packed shards (a folder with index.jsonl, such an index, or their URL), or a folder of images.

        Raises:
            ValueError: nothing usable is there, or the batch cannot be shared out.
        """
        self.parts, how = recipe.loop.parts, recipe.data
        shared = {each.name: getattr(how, each.name) for each in fields(StreamSettings) if hasattr(how, each.name)}
        settings = StreamSettings(
            **shared,
            batch=len(share.places(recipe.loop.batch, 0, self.parts)),
            seed=recipe.loop.seed,
            latents=how.precomputed and not isinstance(recipe, PixelRecipe),
            embeddings=how.precomputed and recipe.reads_text,
        )
        text, folder = str(data), Path(data)
        packed = "://" in text or text.endswith(".jsonl") or (folder / INDEX).exists()
        if not packed and not folder.is_dir():
            raise ValueError(f"{data}: no such folder; name a folder of images, or shards that `pixdec data pack` made")
        least = how.streams or share.count * max(1, how.workers)
        index = text if packed else folder_index(folder, least, buckets(how.base, how.multiple))
        self.loader = StreamLoader(index, settings, rank=share.rank, ranks=share.count, workers=how.workers)

    @property
    def digest(self) -> str:
        """Of names and sizes: the order follows from them."""
        return self.loader.index.digest()

    def begin(self, step: int) -> Iterator[Examples]:
        """All that is shown from step number `step` on, part by part; the loader's workers read ahead."""
        return self.loader.batches(step * self.parts)
