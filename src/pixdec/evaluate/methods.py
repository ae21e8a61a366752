"""What stands in a table side by side: decoders and baselines, by name, all given the same latents.

Names:
    pixdec-nano, runs/a/decoder.safetensors   a decoder, as `PixelDecoder.from_pretrained` takes it, at its own steps
    pixdec-nano:1                             the same in one step
    tiny+lanczos, taef2:FOLDER+lanczos        an autoencoder's decode of the latent, enlarged by a plain filter
    vae:NAME+bicubic                          (see `autoencoders` for their names)
    lanczos, bicubic                          the small photograph itself, enlarged: no latent is in between
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from PIL import Image
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.devices import best_device
from pixdec.encoder import TINY_SPACE
from pixdec.evaluate.autoencoders import Autoencoder, fingerprint, open_autoencoder
from pixdec.io.images import resize
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.sampling.flow import student_times

DEFAULT_SCALE = 4  # where no decoder tells

_ENLARGED = re.compile(r"(?:(?P<autoencoder>.+)\+)?(?P<how>lanczos|bicubic)")
_DECODER = re.compile(r"(?P<decoder>.+?)(?::(?P<steps>\d+))?")


@dataclass(frozen=True)
class Sample:
    """One photograph as every method gets it.

    original: what the results are measured against, (W, H) pixels. low: (1,3,H/scale,W/scale) in [-1,1]. latent: that
    of `low`, with the noise and the sigma of the evaluation.
    """

    original: Image.Image
    low: Tensor
    latent: Latent


@dataclass(frozen=True)
class Method:
    """One line of the table: `enlarge(sample, seed)` gives (1,3,H,W) in [-1,1]; `settings` is all that determines it
    besides sample and seed (JSON)."""

    name: str
    settings: Mapping[str, object]
    enlarge: Callable[[Sample, int], Tensor]


@dataclass(frozen=True)
class Lineup:
    """Methods, and the encoder whose latents they all get."""

    methods: tuple[Method, ...]
    encoder: Autoencoder
    scale: int
    device: torch.device

    @property
    def space(self) -> LatentSpace:
        return self.encoder.space

    @property
    def multiple(self) -> int:
        """The sides of a photograph are brought to multiples of this many pixels."""
        return self.scale * self.space.factor


@dataclass(frozen=True)
class DecoderName:
    decoder: str
    steps: int | None


@dataclass(frozen=True)
class BaselineName:
    autoencoder: str | None  # None: the small photograph itself
    how: Literal["lanczos", "bicubic"]


def parse_method(name: str) -> DecoderName | BaselineName:
    """What a method's name stands for; nothing is looked up.

    Raises:
        ValueError: it is empty, or asks for 0 steps.
    """
    if found := _ENLARGED.fullmatch(name):
        return BaselineName(found["autoencoder"], cast('Literal["lanczos", "bicubic"]', found["how"]))
    found = _DECODER.fullmatch(name)
    if not found:
        raise ValueError(f"method {name!r}: expected a decoder, with :STEPS if you like, or a baseline: tiny+lanczos")
    steps = None if found["steps"] is None else int(found["steps"])
    if steps == 0:
        raise ValueError(f"method {name!r}: expected at least 1 step")
    return DecoderName(found["decoder"], steps)


def open_lineup(
    names: Sequence[str],
    *,
    encoder: str = "tiny",
    space: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Lineup:
    """Load what the names stand for, each model once.

    `encoder` names the autoencoder that makes the latents. `space`, `device` and `dtype` are for the decoders, as in
    `PixelDecoder.from_pretrained`; autoencoders are on the same device, in float32. Without any decoder, `space` None
    is FLUX.2's and the scale 4.

    Raises:
        ValueError: no name, one twice, one that cannot be loaded or takes other steps; decoders of several spaces or
            scales; an autoencoder of another space.
        OSError: a model that cannot be fetched.
    """
    asked = {name: parse_method(name) for name in names}
    if not asked or len(asked) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise ValueError("no method; name decoders or baselines" if twice is None else f"method {twice!r}: named twice")
    place = torch.device(device) if device is not None else best_device()
    decoders: dict[str, PixelDecoder] = {}
    for wanted in asked.values():
        if isinstance(wanted, DecoderName) and wanted.decoder not in decoders:
            decoders[wanted.decoder] = PixelDecoder.from_pretrained(wanted.decoder, place, dtype, space=space)
    steps = {
        name: _steps(name, decoders[wanted.decoder], wanted.steps)
        for name, wanted in asked.items()
        if isinstance(wanted, DecoderName)
    }
    shared, scale = _shared(decoders, space)
    autoencoders = {encoder: open_autoencoder(encoder, shared, place)}
    for wanted in asked.values():
        if isinstance(wanted, BaselineName) and wanted.autoencoder and wanted.autoencoder not in autoencoders:
            autoencoders[wanted.autoencoder] = open_autoencoder(wanted.autoencoder, shared, place)
    digests = {name: fingerprint(decoder.network) for name, decoder in decoders.items()}
    methods = tuple(
        _decoder(name, decoders[wanted.decoder], steps[name], digests[wanted.decoder], autoencoders[encoder])
        if isinstance(wanted, DecoderName)
        else _baseline(name, autoencoders[wanted.autoencoder] if wanted.autoencoder else None, wanted.how, scale)
        for name, wanted in asked.items()
    )
    return Lineup(methods, autoencoders[encoder], scale, place)


def _shared(decoders: Mapping[str, PixelDecoder], space: str | None) -> tuple[LatentSpace, int]:
    """The space of the latents and the scale, which all decoders must agree on."""
    if not decoders:
        return get_space(space or TINY_SPACE), DEFAULT_SCALE
    # Decoders of images take what the autoencoder makes of any latent, so they fit beside the others.
    (first_name, first), *others = sorted(decoders.items(), key=lambda item: item[1].space.is_image)
    for name, other in others:
        fits = other.space.is_image or first.space.holds_latents_of(other.space)
        if not fits or first.scale != other.scale:
            raise ValueError(
                f"{first_name} decodes {first.space.name} latents {first.scale}x, {name} {other.space.name} latents "
                f"{other.scale}x: they cannot get the same latents; evaluate them apart"
            )
    return get_space(TINY_SPACE) if first.space.is_image else first.space, first.scale


def _steps(name: str, decoder: PixelDecoder, steps: int | None) -> int | None:
    """As many as are asked for, else a student's own number; None leaves it to a teacher."""
    if decoder.model.kind != "student":
        return steps
    count = steps or len(decoder.model.times) - 1
    try:
        student_times(decoder.model.times, count)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return count


def _decoder(name: str, decoder: PixelDecoder, steps: int | None, digest: str, first: Autoencoder) -> Method:
    """`first` decodes latents for a decoder that takes images."""

    def enlarge(sample: Sample, seed: int) -> Tensor:
        last, latent = None, sample.latent
        if decoder.space.is_image:
            latent = Latent(first.decode(latent).clamp(-1, 1), decoder.space, latent.sigma)
        for step in decoder.stream(latent, seed=seed, steps=steps):
            last = step
        assert last is not None, "a decoder takes at least one step"
        return last.x0

    dtype = str(decoder.dtype).removeprefix("torch.")
    settings = {"decoder": digest, "steps": steps, "dtype": dtype}
    return Method(name, {**settings, "first": first.digest} if decoder.space.is_image else settings, enlarge)


def _baseline(name: str, autoencoder: Autoencoder | None, how: Literal["lanczos", "bicubic"], scale: int) -> Method:
    def enlarge(sample: Sample, seed: int) -> Tensor:
        del seed
        small = sample.low if autoencoder is None else autoencoder.decode(sample.latent).clamp(-1, 1)
        return resize(small, small.shape[2] * scale, small.shape[3] * scale, how=how)

    return Method(name, {"autoencoder": None if autoencoder is None else autoencoder.digest, "filter": how}, enlarge)


__all__ = ["BaselineName", "DecoderName", "Lineup", "Method", "Sample", "open_lineup", "parse_method"]
