"""One for all images, or one for each: how captions, seeds, sizes and noise levels are given."""

from collections.abc import Sequence
from typing import SupportsIndex

import torch
from torch import Tensor

from pixdec.inference.sizes import Size
from pixdec.io.arguments import items, seed_of, whole
from pixdec.latents import Latent, noise_levels

Prompt = str | Sequence[str]
Sigma = float | Sequence[float] | Tensor | None
Seed = SupportsIndex | Sequence[SupportsIndex]
OutputSize = Size | Sequence[Size | None] | None


def captions_for(prompt: Prompt, images: int) -> list[str]:
    """A caption for each image."""
    captions = [prompt] * images if isinstance(prompt, str) else items(prompt)
    if captions is None or not all(isinstance(each, str) for each in captions):
        raise ValueError(f"prompt={prompt!r}: expected a string, or one for each latent; '' is no caption")
    if len(captions) != images:
        raise ValueError(f"{len(captions)} captions for {images} latents; give one, or one for each")
    return captions


def seeds_for(seed: Seed, images: int) -> list[int]:
    """A seed for each image: of one seed s, s + i for image i."""
    seeds = items(seed)
    if seeds is None:
        return [seed_of(seed_of(seed) + i) for i in range(images)]
    if len(seeds) != images:
        raise ValueError(f"{len(seeds)} seeds for {images} latents; give one, or one for each")
    return [seed_of(each) for each in seeds]


def sizes_for(size: OutputSize, latents: int) -> list[Size | None]:
    """A size for each latent."""
    if size is None:
        return [None] * latents
    each = items(size)
    if each is None or not any(other is None or items(other) for other in each):
        return [_size(size)] * latents
    sizes = [None if one is None else _size(one) for one in each]
    if len(sizes) != latents:
        raise ValueError(f"{len(sizes)} sizes for {latents} latents; give one, or one for each")
    return sizes


def levels_for(sigma: Sigma, latents: Sequence[Latent | Tensor]) -> list[Tensor | None]:
    """The noise levels (B,) of each latent (B,…): sigma for all images, or one for each. None: each latent's own."""
    counts = [(each if isinstance(each, Tensor) else each.tensor).shape[:1].numel() for each in latents]
    if sigma is None:
        return [None] * len(counts)
    return list(noise_levels(sigma, sum(counts), torch.device("cpu")).split(counts))


def _size(given: object) -> Size:
    try:
        height, width = (whole("size", side) for side in items(given) or ())
    except ValueError as error:
        raise ValueError(f"size={given}: expected (height, width) in pixels, whole numbers of at least 1") from error
    return height, width
