"""What is asked of a decode: requests, each for one image, and batches of those of one size.

Captions, seeds, sizes and noise levels are given as one for all images, or one for each.

B batch · C latent channels · h, w latent grid
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from pixdec.inference.sizes import Frame, Size, check_size
from pixdec.io.arguments import items, seed_of, whole
from pixdec.latents import Latent, get_space, noise_levels
from pixdec.latents.validation import check_form
from pixdec.weights.load import LoadedDecoder

Prompt = str | Sequence[str]
Sigma = float | Sequence[float] | Tensor | None
Seed = SupportsIndex | Sequence[SupportsIndex]
OutputSize = Size | Sequence[Size | None] | None


@dataclass(frozen=True)
class Request:
    """One image that is asked for: a latent (1,C,h,w), its caption and seed, where its image lies in what the network
    puts out, and the size to resample it to, if any."""

    latent: Latent
    prompt: str
    seed: int
    frame: Frame
    size: Size | None


def requests_for(
    model: LoadedDecoder,
    latents: Sequence[Latent | Tensor],
    prompt: Prompt = "",
    sigma: Sigma = None,
    seed: Seed = 0,
    size: OutputSize = None,
) -> list[Request]:
    """One request for each image of the latents (B,C,h,w), in order, checked.

    A caption for all images or one for each; so the noise levels, None for each latent's own; a seed for each, or one
    s, of which image i has s + i; a size for all or one for each latent.

    Raises:
        ValueError: a latent of another space, or what does not fit the number of latents or what they decode to.
    """
    for latent in latents:
        if not isinstance(latent, Latent):
            check_form(latent, get_space(model.spaces[0]))
    levels, sizes = levels_for(sigma, latents), sizes_for(size, len(latents))
    accepted = [_accepted(model, *each) for each in zip(latents, levels, strict=True)]
    images = sum(each.tensor.shape[0] for each in accepted)
    captions, seeds = captions_for(prompt, images), seeds_for(seed, images)
    if not model.needs_text and any(captions):
        caption = next(filter(None, captions))
        raise ValueError(f"{model.name} takes no caption, got {caption!r}; leave the prompt empty")
    requests = list[Request]()
    for latent, wanted in zip(accepted, sizes, strict=True):
        rows, columns = latent.tensor.shape[2:]
        frame = Frame.of(rows, columns, latent.space.factor * model.scale, model.network.patch)
        if wanted is not None:
            check_size(wanted, frame.size)
        for i in range(latent.tensor.shape[0]):
            one = Latent(latent.tensor[i : i + 1], latent.space, latent.sigma[i : i + 1], statistics=False)
            requests.append(Request(one, captions[len(requests)], seeds[len(requests)], frame, wanted))
    return requests


def _accepted(model: LoadedDecoder, latent: Latent | Tensor, sigma: Tensor | None) -> Latent:
    """A checked latent of the decoder's space, at the noise level that was asked for."""
    space = get_space(model.spaces[0])
    if not isinstance(latent, Latent):
        return Latent(latent, space, 0.0 if sigma is None else sigma)
    if not space.holds_latents_of(latent.space):
        raise ValueError(
            f"a latent of {latent.space.name} for {model.name}, which decodes {' and '.join(model.spaces)}; "
            f"take a decoder of {latent.space.name}, see `pixdec models`"
        )
    return latent if sigma is None else latent.with_sigma(sigma)


@dataclass(frozen=True)
class Batch:
    """Requests whose latents have one shape and kind, and whose images one size; `places` among all that were asked
    for."""

    places: Sequence[int]
    requests: Sequence[Request]

    def latent(self, device: torch.device) -> Tensor:
        """(B,C,h,w), padded to what the network takes."""
        joined = torch.cat([each.latent.tensor for each in self.requests]).to(device)
        return self.requests[0].frame.pad(joined)

    def sigma(self, device: torch.device) -> Tensor:
        """(B,)"""
        return torch.cat([each.latent.sigma for each in self.requests]).to(device)

    def halves(self) -> "list[Batch]":
        """Two batches in its place."""
        half = len(self.requests) // 2
        parts = slice(half), slice(half, None)
        return [Batch(self.places[part], self.requests[part]) for part in parts]


def batches_of(requests: Sequence[Request], at_once: Callable[[Size], int]) -> Iterator[Batch]:
    """Batches in the order in which the first request of each size comes, of at most `at_once(size)` images that the
    network puts out at that size."""
    groups: dict[object, list[int]] = {}
    for place, request in enumerate(requests):
        tensor = request.latent.tensor
        groups.setdefault((tensor.shape, tensor.dtype, tensor.device, request.size), []).append(place)
    for group in groups.values():
        count = at_once(requests[group[0]].frame.whole)
        for start in range(0, len(group), count):
            places = group[start : start + count]
            yield Batch(places, [requests[place] for place in places])


def tensor_of(latent: Latent | Tensor) -> Tensor:
    """(B,C,h,w)"""
    return latent if isinstance(latent, Tensor) else latent.tensor


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
    counts = [tensor_of(each).shape[:1].numel() for each in latents]
    if sigma is None:
        return [None] * len(counts)
    return list(noise_levels(sigma, sum(counts), torch.device("cpu")).split(counts))


def _size(given: object) -> Size:
    try:
        height, width = (whole("size", side) for side in items(given) or ())
    except ValueError as error:
        raise ValueError(f"size={given}: expected (height, width) in pixels, whole numbers of at least 1") from error
    return height, width
