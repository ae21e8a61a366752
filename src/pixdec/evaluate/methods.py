"""What stands in a table side by side: decoders and baselines, by name, all given the same latents.

Names:
    pixdec-nano, runs/a/decoder.safetensors   a decoder, as `PixelDecoder.from_pretrained` takes it, at its own steps
    pixdec-nano:1                             the same in one step
    tiny+lanczos, taef2:FOLDER+real-esrgan    an autoencoder's decode of the latent, enlarged by an upscaler
    vae:NAME+spandrel:FILE                    (see `autoencoders` and `upscalers` for their names)
    lanczos, real-esrgan                      the small photograph itself, enlarged: no latent is in between
    original                                  the photograph, for what metrics without a reference say of it
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import torch
from PIL import Image
from torch import Tensor

from pixdec.decoder import PixelDecoder
from pixdec.devices import best_device
from pixdec.encoder import TINY_SPACE
from pixdec.evaluate.autoencoders import IMAGE, Autoencoder, fingerprint, open_autoencoder
from pixdec.evaluate.upscalers import UPSCALERS, Enlarge, UnavailableError
from pixdec.io.images import to_tensor
from pixdec.latents import Latent, LatentSpace, get_space
from pixdec.sampling.flow import student_times

DEFAULT_SCALE = 4  # where no decoder tells
ORIGINAL = "original"

_ENLARGED = re.compile(rf"(?:(?P<autoencoder>.+)\+)?(?P<how>{'|'.join(UPSCALERS)})(?::(?P<argument>.+))?")
_DECODER = re.compile(r"(?P<decoder>.+?)(?::(?P<steps>\d+))?")


@dataclass(frozen=True)
class Sample:
    """What every method gets, and what its result is measured against.

    Attributes:
        latent: with the noise and the sigma of the evaluation.
        low: the small image that it is the latent of, (1,3,H/scale,W/scale) in [-1,1]; None of a generator's.
        original: the photograph, (W, H) pixels; None of a generator's.
        text: what is written on it.
        image: what a decoder of images gets in the latent's place, if it is not to be made of that.
        prompt: what a decoder that reads text is told.
    """

    latent: Latent
    low: Tensor | None = None
    original: Image.Image | None = None
    text: str | None = None
    image: Latent | None = None
    prompt: str = ""


@dataclass(frozen=True)
class Method:
    """One line of the table.

    Attributes:
        settings: all that determines an image besides sample and seed (JSON).
        enlarge: (sample, seed) -> (1,3,H,W) in [-1,1].
        licence: of its weights.
        takes_noise: it reads latents that are not clean, as decoders do.
    """

    name: str
    settings: Mapping[str, object]
    enlarge: Callable[[Sample, int], Tensor]
    licence: str = ""
    takes_noise: bool = False


@dataclass(frozen=True)
class Lineup:
    """Methods, and the encoder whose latents they all get. `missing`: methods that cannot run here, and why."""

    methods: tuple[Method, ...]
    encoder: Autoencoder
    scale: int
    device: torch.device
    missing: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def space(self) -> LatentSpace:
        return self.encoder.space

    @property
    def multiple(self) -> int:
        """The sides of a photograph are brought to multiples of this many pixels."""
        return self.scale * self.space.factor


@dataclass(frozen=True)
class Named:
    """What a method's name says: a `decoder` and its steps, or `how` an autoencoder's decode is enlarged (of UPSCALERS,
    or ORIGINAL); without an autoencoder, the small photograph."""

    decoder: str = ""
    steps: int | None = None
    autoencoder: str | None = None
    how: str = ""
    argument: str = ""


def parse_method(name: str) -> Named:
    """What a method's name stands for; nothing is looked up.

    Raises:
        ValueError: it is empty, asks for 0 steps, or has an argument too many or too few.
    """
    if name == ORIGINAL:
        return Named(how=ORIGINAL)
    if found := _ENLARGED.fullmatch(name):
        how, argument = found["how"], found["argument"] or ""
        takes = UPSCALERS[how].takes
        if argument and takes is None:
            raise ValueError(f"method {name!r}: {how} takes nothing behind a colon")
        if not argument and how in ("spandrel", "diffusers"):
            raise ValueError(f"method {name!r}: expected {how}:NAME, {takes}")
        return Named(autoencoder=found["autoencoder"], how=how, argument=argument)
    found = _DECODER.fullmatch(name)
    if not found:
        raise ValueError(f"method {name!r}: expected a decoder, with :STEPS if you like, or a baseline: tiny+lanczos")
    if found["steps"] and int(found["steps"]) == 0:
        raise ValueError(f"method {name!r}: expected at least 1 step")
    return Named(found["decoder"], int(found["steps"]) if found["steps"] else None)


def open_lineup(
    names: Sequence[str],
    *,
    encoder: str = "tiny",
    space: str | None = None,
    latents: LatentSpace | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Lineup:
    """Load what the names stand for, each model once.

    `encoder` names the autoencoder that makes the latents. `space`, `device` and `dtype` are for the decoders, as in
    `PixelDecoder.from_pretrained`; autoencoders are on the same device, in float32. `latents` is the space that the
    methods are given latents of; without it and any decoder of latents it is FLUX.2's, and without any the scale is 4.

    Raises:
        ValueError: no name, one twice, one that cannot be loaded or takes other steps; decoders of several spaces or
            scales; an autoencoder of another space; no method that can run here.
        OSError: a model that cannot be fetched.
    """
    asked = {name: parse_method(name) for name in names}
    if not asked or len(asked) < len(names):
        twice = next((name for name in names if names.count(name) > 1), None)
        raise ValueError("no method; name decoders or baselines" if twice is None else f"method {twice!r}: named twice")
    place = torch.device(device) if device is not None else best_device()
    models = dict.fromkeys(each.decoder for each in asked.values() if each.decoder)
    decoders = {model: PixelDecoder.from_pretrained(model, place, dtype, space=space) for model in models}
    steps = {name: _steps(name, decoders[each.decoder], each.steps) for name, each in asked.items() if each.decoder}
    shared, scale = _shared(decoders, space)
    if latents is not None and latents is not shared:
        if any(not decoder.space.is_image and not shared.holds_latents_of(latents) for decoder in decoders.values()):
            raise ValueError(f"latents of {latents.name}: the decoders take those of {shared.name}")
        shared = latents
    open_one = cache(partial(open_autoencoder, space=shared, device=place))
    first = open_one(encoder)
    if encoder == IMAGE and (other := next((name for name, each in decoders.items() if not each.space.is_image), None)):
        raise ValueError(f"{other} decodes latents of {shared.name}, and encoder={IMAGE!r} makes none; name another")
    methods, missing = list[Method](), dict[str, str]()
    for name, wanted in asked.items():
        try:
            if wanted.decoder:
                methods.append(_decoder(name, decoders[wanted.decoder], steps[name], first))
            elif wanted.how == ORIGINAL:
                methods.append(Method(name, {"original": True}, _original))
            else:
                enlarge = UPSCALERS[wanted.how].open(wanted.argument, place)
                small = open_one(wanted.autoencoder) if wanted.autoencoder else None
                methods.append(_baseline(name, small, wanted, enlarge, scale))
        except UnavailableError as error:
            missing[name] = str(error)
    if not methods:
        raise ValueError("; ".join(missing.values()))
    return Lineup(tuple(methods), first, scale, place, missing)


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
    count = steps or decoder.model.default_steps
    assert count is not None
    try:
        student_times(decoder.model.times, count)
    except ValueError as error:
        raise ValueError(f"method {name!r}: {error}") from error
    return count


def _decoder(name: str, decoder: PixelDecoder, steps: int | None, first: Autoencoder) -> Method:
    """`first` decodes latents for a decoder that takes images."""

    def enlarge(sample: Sample, seed: int) -> Tensor:
        latent = sample.latent
        if decoder.space.is_image:
            latent = sample.image or Latent(first.decode(latent).clamp(-1, 1), decoder.space, latent.sigma)
        prompt = sample.prompt if decoder.model.needs_text else ""
        return deque(decoder.stream(latent, prompt, seed=seed, steps=steps), maxlen=1).pop().x0

    dtype = str(decoder.dtype).removeprefix("torch.")
    settings: dict[str, object] = {"decoder": fingerprint(decoder.network), "steps": steps, "dtype": dtype}
    if decoder.space.is_image:
        settings["first"] = first.digest
    return Method(name, settings, enlarge, str(decoder.model.licence or "not stated"), takes_noise=True)


def _baseline(name: str, autoencoder: Autoencoder | None, asked: Named, upscale: Enlarge, scale: int) -> Method:
    def enlarge(sample: Sample, seed: int) -> Tensor:
        small = sample.low if autoencoder is None else autoencoder.decode(sample.latent).float().cpu().clamp(-1, 1)
        if small is None:
            raise ValueError(f"{name} enlarges a small photograph, and a generator's latent has none")
        return upscale(small, scale, seed)

    settings: dict[str, object] = {"autoencoder": autoencoder and autoencoder.digest, "filter": asked.how}
    if asked.argument:
        settings["argument"] = asked.argument
    licences = [*([autoencoder.licence] if autoencoder else []), UPSCALERS[asked.how].licence]
    return Method(name, settings, enlarge, " + ".join(dict.fromkeys(licences)))


def _original(sample: Sample, seed: int) -> Tensor:
    if sample.original is None:
        raise ValueError(f"{ORIGINAL}: a generator's latent has none")
    return to_tensor(sample.original)
