"""Many latents of many sizes: taken apart into single images, and put together in batches of one size.

B batch · C channels · h, w latent grid
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, SupportsIndex

import numpy as np
import torch
from torch import Tensor

from pixdec.inference.sizes import Size
from pixdec.io.arguments import items, seed_of, whole
from pixdec.io.images import to_pil
from pixdec.latents import Latent, noise_levels

Prompt = str | Sequence[str]
Sigma = float | Sequence[float] | Tensor | None
Seed = SupportsIndex | Sequence[SupportsIndex]
OutputSize = Size | Sequence[Size | None] | None


@dataclass(frozen=True)
class Request:
    """One image that was asked for, number `place` of all: a latent (1,C,h,w), its caption and seed, and the size to
    resample to, if any."""

    place: int
    latent: Latent
    caption: str
    seed: int
    size: Size | None


def requests_of(latents: Sequence[Latent], prompt: Prompt, seed: Seed, size: OutputSize) -> list[Request]:
    """One request for each image of the latents (B,C,h,w), in order.

    A caption for all images or one for each; a seed for each, or one s, of which image i has s + i; a size for all or
    one for each latent. ValueError for another number of them.
    """
    sizes = sizes_for(size, len(latents))
    each = [
        (Latent(latent.tensor[i : i + 1], latent.space, latent.sigma[i : i + 1], statistics=False), wanted)
        for latent, wanted in zip(latents, sizes, strict=True)
        for i in range(latent.tensor.shape[0])
    ]
    captions, seeds = captions_for(prompt, len(each)), seeds_for(seed, len(each))
    return [Request(i, latent, captions[i], seeds[i], wanted) for i, (latent, wanted) in enumerate(each)]


def batches(requests: Sequence[Request], at_once: Callable[[Request], int]) -> Iterator[list[Request]]:
    """Requests with latents of one shape and kind and with one size, up to `at_once` of them together, in the order in
    which the first of each comes."""
    groups: dict[object, list[Request]] = {}
    for request in requests:
        tensor = request.latent.tensor
        groups.setdefault((tensor.shape, tensor.dtype, tensor.device, request.size), []).append(request)
    for group in groups.values():
        count = at_once(group[0])
        yield from (group[start : start + count] for start in range(0, len(group), count))


def joined(batch: Sequence[Request]) -> Latent:
    """The latents of requests of one shape as one (B,C,h,w)."""
    latents = [request.latent for request in batch]
    tensor, sigma = torch.cat([each.tensor for each in latents]), torch.cat([each.sigma for each in latents])
    return Latent(tensor, latents[0].space, sigma, statistics=False)  # each of which has passed


def in_form(x0: Tensor, output: Literal["pil", "pt", "np"]) -> Sequence[Any]:
    """Decoded images (B,3,H,W) in [-1,1], one by one: PIL images, or tensors (3,H,W) or arrays (H,W,3) in [0,1]."""
    if output == "pil":
        return to_pil(x0)
    images = (x0 + 1).div_(2)
    return list(images if output == "pt" else images.permute(0, 2, 3, 1).cpu().numpy())


def stacked(images: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    """Tensors or arrays, so many of one shape after each other -> one batch of each of these."""
    ends = list(accumulate(counts))
    groups = [images[end - count : end] for count, end in zip(counts, ends, strict=True)]
    return [
        group[0][None]  # large images come alone, and are not copied
        if len(group) == 1
        else (torch.stack if isinstance(group[0], Tensor) else np.stack)(list(group))
        for group in groups
    ]


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
