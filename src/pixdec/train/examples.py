"""Where examples come from: packed shards, or a plain folder of images, which is read as if it were packed."""

from dataclasses import fields
from pathlib import Path

from pixdec.train.data.buckets import buckets
from pixdec.train.data.folder import folder_index
from pixdec.train.data.shards import INDEX
from pixdec.train.data.stream import StreamLoader, StreamSettings
from pixdec.train.parallel import Share
from pixdec.train.recipes import AnyRecipe, PixelRecipe


def open_examples(data: str | Path, recipe: AnyRecipe, share: Share) -> StreamLoader:
    """The examples of one process, a batch for each part of a step.

    Args:
        data: packed shards (a folder with index.jsonl, such an index, or their URL), or a folder of images.
        recipe: which of them, and how many at a time.
        share: of every batch.

    Raises:
        ValueError: nothing usable is there, or the batch cannot be shared out.
    """
    how = recipe.data
    shared = {each.name: getattr(how, each.name) for each in fields(StreamSettings) if hasattr(how, each.name)}
    settings = StreamSettings(
        **shared,
        batch=len(share.places(recipe.loop.batch, 0, recipe.loop.parts)),
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
    return StreamLoader(index, settings, rank=share.rank, ranks=share.count, workers=how.workers)
