"""What training is given: images with their captions, and what was computed of them beforehand.

B batch · H, W image pixels · C latent channels · h, w latent grid · T text tokens · E their width
"""

import contextlib
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pixdec.io.images import read_image, to_tensor
from pixdec.train.data.buckets import Bucket
from pixdec.train.data.captions import PLAIN, inside
from pixdec.train.data.fit import FitSettings, fit
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
class Examples:
    """A batch of one size: images (B,3,H,W) float32 in [-1,1] with their captions; latents (B,C,h,w), clean, and
    embeddings (T,E) of each caption if they were computed beforehand and asked for; what the images are called, and the
    seeds of their noise, where they come from shards."""

    images: Tensor
    captions: Sequence[str]
    latents: Tensor | None = None
    embeddings: Sequence[Tensor] | None = None
    seeds: Sequence[int] = ()
    keys: Sequence[str] = ()

    def to(self, device: torch.device) -> "Examples":
        """The same with their tensors on `device`."""
        latents = None if self.latents is None else self.latents.to(device)
        embeddings = None if self.embeddings is None else [each.to(device) for each in self.embeddings]
        return replace(self, images=self.images.to(device), latents=latents, embeddings=embeddings)


@dataclass(frozen=True, kw_only=True)
class SampleSettings:
    """What is made of an image.

    Attributes:
        fit: which part of an image is taken.
        latents, embeddings: give the precomputed ones along. Latents are those of the middle of each image, so
            `latents` goes with fit=CENTER, and with the base they were made for.
    """

    fit: FitSettings = field(default_factory=FitSettings)
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
    image = read_image(io.BytesIO(data), name=f"{raw.key}.{extension}")
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
    page = draw_page(rng, max(bucket.width, bucket.height)).crop((0, 0, bucket.width, bucket.height))
    return Sample(to_tensor(page)[0], "", key)


def collate(samples: Sequence[Sample]) -> Examples:
    """Samples of one size → a batch."""
    latents = [sample.latent for sample in samples if sample.latent is not None]
    return Examples(
        torch.stack([sample.image for sample in samples]),
        [sample.caption for sample in samples],
        torch.stack(latents) if latents else None,
        [sample.embedding for sample in samples if sample.embedding is not None] or None,
        [sample.seed for sample in samples],
        [sample.key for sample in samples],
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
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{key}: its precomputed tensors are missing or damaged ({error})") from error

    def wanted(name: str) -> Tensor:
        if name not in tensors:
            raise ValueError(f"{key}: no {name!r} among its precomputed tensors {', '.join(tensors)}")
        return tensors[name]

    latent = wanted("latent") if settings.latents else None
    return latent, wanted(f"embedding.{caption}") if settings.embeddings else None
