"""What training is given: one image with its caption, and batches of them."""

import contextlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pixdec.io.images import to_tensor
from pixdec.train.data.buckets import Bucket
from pixdec.train.data.captions import PLAIN, inside
from pixdec.train.data.fit import FitSettings, fit
from pixdec.train.data.reading import decode_image
from pixdec.train.data.shards import Raw
from pixdec.train.data.synthetic import draw_page


@dataclass(frozen=True, eq=False)
class Sample:
    """image: (3,H,W) float32 in [-1,1]; latent: (C,h,w), normalised and clean; embedding: (T,E), of the caption; seed:
    that of its noise, where it is fixed."""

    image: Tensor
    caption: str
    key: str
    latent: Tensor | None = None
    embedding: Tensor | None = None
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one size. images: (B,3,H,W) float32 in [-1,1]; latents (B,C,h,w) and embeddings (T,E) each if the
    shards hold them and they were asked for."""

    images: Tensor
    captions: list[str]
    keys: list[str]
    latents: Tensor | None = None
    embeddings: list[Tensor] | None = None
    seeds: list[int] = field(default_factory=list[int])


@dataclass(frozen=True)
class SampleSettings:
    """What is made of an image: which part of it, and which precomputed tensors come along."""

    fit: FitSettings
    latents: bool = False
    embeddings: bool = False


def make_sample(
    raw: Raw, size: tuple[int, int], bucket: Bucket, settings: SampleSettings, rng: np.random.Generator
) -> Sample:
    """One image of a shard, decoded and brought to its bucket's size; its caption drawn uniformly from those it has.

    size: (width, height) that the index has for it.

    Raises:
        ValueError: one line: no image, a damaged one, one of another size, or without the tensors asked for.
    """
    extension, data = raw.image()
    image = decode_image(data, f"{raw.key}.{extension}")
    if image.size != size:
        raise ValueError(
            f"{raw.key}: {image.width}x{image.height} pixels, {size[0]}x{size[1]} in the index: it is of other shards, "
            "make it again with `pixdec data index`"
        )
    notes = raw.notes()
    captions = inside(notes, raw.key)
    names = sorted(captions) or [PLAIN]
    name = names[int(rng.integers(len(names)))]
    latent, embedding = _tensors(raw.key, notes, name, settings)
    part = to_tensor(fit(image, bucket, settings.fit, rng))[0]
    return Sample(part, captions.get(name, ""), raw.key, latent, embedding, _seed(raw.key, notes))


def make_page(key: str, bucket: Bucket, rng: np.random.Generator) -> Sample:
    """A page of rendered text and line art (`synthetic.draw_page`) in a bucket's size, without a caption."""
    page: Image.Image = draw_page(rng, max(bucket.width, bucket.height)).crop((0, 0, bucket.width, bucket.height))
    return Sample(to_tensor(page)[0], "", key)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size → a batch."""
    latents = [sample.latent for sample in samples if sample.latent is not None]
    embeddings = [sample.embedding for sample in samples if sample.embedding is not None]
    return Batch(
        torch.stack([sample.image for sample in samples]),
        [sample.caption for sample in samples],
        [sample.key for sample in samples],
        torch.stack(latents) if latents else None,
        embeddings or None,
        [sample.seed for sample in samples],
    )


def _seed(key: str, notes: Mapping[str, bytes]) -> int:
    """The one that the image was made with; another for each image that was not."""
    with contextlib.suppress(ValueError, AttributeError):
        found = json.loads(notes.get("json", b"{}")).get("seed")
        if isinstance(found, int):
            return found
    return zlib.crc32(key.encode())


def _tensors(
    key: str, notes: Mapping[str, bytes], caption: str, settings: SampleSettings
) -> tuple[Tensor | None, Tensor | None]:
    if not settings.latents and not settings.embeddings:
        return None, None
    try:
        tensors = load(notes.get("safetensors", b""))
    except (SafetensorError, ValueError, json.JSONDecodeError) as error:
        raise ValueError(f"{key}: its precomputed tensors are missing or damaged ({error})") from error
    wanted = [
        name for name, asked in (("latent", settings.latents), (f"embedding.{caption}", settings.embeddings)) if asked
    ]
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise ValueError(f"{key}: no {missing[0]!r} among its precomputed tensors {', '.join(tensors)}")
    return (
        tensors["latent"] if settings.latents else None,
        tensors[f"embedding.{caption}"] if settings.embeddings else None,
    )
