"""What may be asked for over HTTP, and the work that it makes. Fields are strict: a wrong type, an unknown name or a
number out of range is refused by the field's name before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, WithJsonSchema

from pixdec.generation.enlarge import UpscaleSettings
from pixdec.io.images import image_size
from pixdec.io.writing import MAX_SIDE
from pixdec.latents import get_space
from pixdec.serve.engine import Engine
from pixdec.serve.jobs import ServiceError, Work, given
from pixdec.serve.settings import Limits, Strict, first_fault

SEEDS = -(2**63), 2**64 - 1
MOST = 1_000_000  # of any whole number that is no seed: limits of the service say less

Seed = Annotated[int, Field(ge=SEEDS[0], le=SEEDS[1])]
Count = Annotated[int, Field(ge=1, le=MOST)]
File = Annotated[
    bytes, WithJsonSchema({"type": "string", "format": "binary", "description": "the file; in JSON its base64"})
]


class Asked(Strict):
    """What all requests for an image share."""

    model: str | None = Field(default=None, description="a decoder of /v1/models; the first of them without it")
    seed: Seed = Field(default=0, description="the same request with the same seed gives the same bytes")
    steps: Count | None = Field(default=None, description="decoding steps; the model's own number without it")
    prompt: str = Field(default="", description="what the image shows, for models that read text")
    profile: str | None = Field(
        default=None, description="faithful, balanced or creative: stands for strength and steps"
    )
    output_format: Literal["png", "webp", "jpeg"] = "png"
    respond: Literal["image", "job"] = Field(default="image", description="the image, or at once the record of a job")
    deadline: float | None = Field(
        default=None, gt=0, le=86400, description="seconds that it may wait before it starts"
    )


class Upscale(Asked):
    """An image, larger."""

    image: File
    strength: float | None = Field(default=None, ge=0, le=0.8, description="how much may be invented")
    scale: float | None = Field(default=None, gt=0, le=64, description="how many times as large, else the model's own")
    size: str | None = Field(default=None, pattern=r"^[1-9]\d{0,4}x[1-9]\d{0,4}$", description="or WIDTHxHEIGHT")


class Decode(Asked):
    """A latent, decoded."""

    latent: File
    space: str | None = Field(default=None, description="of a file that names none")
    sigma: float | None = Field(
        default=None, ge=0, le=1, description="noise level of the latent; that of its file without it"
    )


class Generate(Asked):
    """A prompt through a pipeline, stopped where asked, and decoded."""

    prompt: str = Field(default=..., min_length=1)
    pipeline: str | None = None
    negative_prompt: str | None = None
    width: Count | None = None
    height: Count | None = None
    generator_steps: Count | None = None
    guidance: float | None = Field(default=None, ge=0, le=100)
    stop_after: Count | None = Field(default=None, description="of the generator's steps; all of them without it")


A = TypeVar("A", bound=Strict)


def read(kind: type[A], fields: Mapping[str, Any]) -> A:
    """The fields of a request as what they must be.

    Raises:
        ServiceError: 400 with the name of the first field that is wrong.
    """
    try:
        return kind.model_validate(dict(fields))
    except ValidationError as error:
        field, message = first_fault(error)
        raise ServiceError("invalid_field", f"{field}: {message}", field.split(".")[0]) from None


def from_json(kind: type[Strict], body: bytes) -> dict[str, Any]:
    """The fields of a JSON body, files decoded.

    Raises:
        ServiceError: 400, no JSON object, or a file that is no base64.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        raise ServiceError("invalid_json", "the body is no JSON") from None
    if not isinstance(fields, dict):
        raise ServiceError("invalid_json", "the body is no JSON object")
    for name in files_of(kind) & fields.keys():
        text = fields[name]
        if not isinstance(text, str):
            raise ServiceError("invalid_field", f"{name}: expected base64 or a data URL", name)
        if text.startswith("data:"):
            text = text.partition(",")[2]
        try:
            fields[name] = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ServiceError("invalid_field", f"{name}: no base64; links are not followed", name) from None
    return fields


def from_form(kind: type[Strict], texts: Mapping[str, str]) -> dict[str, Any]:
    """The text fields of a form, in which all is text, as what their field is."""
    fields = dict[str, Any]()
    for name, text in texts.items():
        declared = kind.model_fields.get(name)
        fields[name] = text
        if declared is not None and declared.annotation is not str and "str" not in str(declared.annotation):
            try:
                fields[name] = json.loads(text)
            except (ValueError, RecursionError):  # which is then refused by the field's type
                continue
    return fields


def files_of(kind: type[Strict]) -> set[str]:
    """Names of the fields that are files."""
    return {name for name, field in kind.model_fields.items() if field.annotation is bytes}


def work_of(asked: Asked, engine: Engine) -> Work:
    """The work that was asked for, within the limits, its sizes read from headers.

    Raises:
        ServiceError: what is asked for cannot be had.
    """
    limits = engine.settings.limits
    asked = _with_profile(asked, engine)
    name = asked.model or next(iter(engine.settings.models))
    if name not in engine.settings.models:
        raise ServiceError("model_not_found", f"model={name!r}: there is none; see /v1/models", "model")
    model = engine.models.get(name)
    if model is None:
        raise ServiceError("not_ready", f"{name} is being loaded")
    _check_common(asked, model, limits)
    if isinstance(asked, Upscale):
        return _upscale(asked, name, model, limits)
    if isinstance(asked, Decode):
        return _decode(asked, name, model, limits)
    assert isinstance(asked, Generate)
    return _generate(asked, name, model, engine)


def _with_profile(asked: Asked, engine: Engine) -> Asked:
    if asked.profile is None:
        return asked
    profile = engine.settings.profiles.get(asked.profile)
    if profile is None:
        known = ", ".join(engine.settings.profiles) or "none is configured"
        raise ServiceError("invalid_field", f"profile={asked.profile!r}: expected one of {known}", "profile")
    told = profile.model_dump(exclude_none=True)
    found = {key: value for key, value in told.items() if hasattr(asked, key)}
    if told and not found:
        message = f"profile={asked.profile!r}: it sets {' and '.join(told)}, which this request has not"
        raise ServiceError("invalid_field", message, "profile")
    return asked.model_copy(update={key: value for key, value in found.items() if getattr(asked, key) is None})


def _check_common(asked: Asked, model: Mapping[str, Any], limits: Limits) -> None:
    most = min(limits.steps, model["steps"][1] or limits.steps)
    if asked.steps is not None and asked.steps > most:
        raise ServiceError("invalid_field", f"steps={asked.steps}: expected 1 to {most}", "steps")
    if len(asked.prompt) > limits.prompt:
        raise ServiceError(
            "invalid_field", f"prompt: {len(asked.prompt)} characters; at most {limits.prompt}", "prompt"
        )
    if asked.prompt and not model["needs_text"] and not isinstance(asked, Generate):
        raise ServiceError(
            "invalid_field", f"prompt={asked.prompt[:40]!r}: this model takes no text; leave it out", "prompt"
        )


def _check_pixels(height: int, width: int, limits: Limits, field: str) -> None:
    if height * width > limits.pixels:
        message = f"{field}: the output would have {width}x{height} pixels; the limit is {limits.pixels} in all"
        raise ServiceError("too_many_pixels", message, field)


def _upscale(asked: Upscale, name: str, model: Mapping[str, Any], limits: Limits) -> Work:
    if not model["encodes"]:
        raise ServiceError("unprocessable", f"{name} decodes latents of {model['space']} only: /v1/decode", "model")
    if asked.strength is not None and asked.strength > limits.strength:
        raise ServiceError("invalid_field", f"strength={asked.strength}: at most {limits.strength} here", "strength")
    try:
        width, height = image_size(io.BytesIO(asked.image))
    except ValueError as error:
        large = "pixels" in str(error)
        raise ServiceError("too_many_pixels" if large else "not_an_image", str(error), "image") from None
    if asked.scale is not None and asked.size is not None:
        raise ServiceError("invalid_field", "size: scale says it too; leave one out", "size")
    wanted: tuple[int, int] | None = None
    if asked.size is not None:
        wide, high = (int(side) for side in asked.size.split("x"))
        wanted = high, wide
    size = wanted or UpscaleSettings(asked.scale).output_size((height, width), model["scale"])
    options = given(strength=asked.strength or None, scale=asked.scale, size=wanted)
    _check_pixels(*size, limits, "image")
    _check_pixels(height * model["scale"], width * model["scale"], limits, "image")  # what is decoded is no less
    if max(size) > MAX_SIDE:
        raise ServiceError("too_many_pixels", f"image: the output's longer side would be {max(size)}", "image")
    shape, pixels = (*sorted((height, width)), asked.scale, wanted), max(size[0] * size[1], height * width)
    return Work("upscale", name, asked.image, shape, pixels, asked.prompt, asked.seed, asked.steps, options)


def _decode(asked: Decode, name: str, model: Mapping[str, Any], limits: Limits) -> Work:
    shape, space = _latent_header(asked.latent)
    space = space or asked.space
    try:
        factor = get_space(space).factor if space is not None else model["factor"]
    except ValueError as error:
        raise ServiceError("unprocessable", str(error), "space") from None
    height, width = (side * factor * model["scale"] for side in shape[-2:])
    _check_pixels(height, width, limits, "latent")
    options = given(sigma=asked.sigma, space=asked.space)
    key = (*shape, space)
    return Work("decode", name, asked.latent, key, height * width, asked.prompt, asked.seed, asked.steps, options)


def _latent_header(data: bytes) -> tuple[tuple[int, ...], str | None]:
    """Shape and space that the header of safetensors tells; nothing of the tensors is read."""
    try:
        length = int.from_bytes(data[:8], "little")
        if not 2 <= length <= min(len(data) - 8, 1 << 20):
            raise ValueError
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__", None) or {}
        entry = header.get("latent") or header.get("latent_tensor") or next(iter(header.values()))
        shape, space = tuple(entry["shape"]), metadata.get("space")
        if len(shape) not in (3, 4, 5) or not all(type(side) is int and 0 < side < MOST for side in shape):
            raise ValueError
        if space is not None and not isinstance(space, str):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration, RecursionError):
        raise ServiceError("not_a_latent", "latent: no safetensors of one latent (1, C, h, w)", "latent") from None
    return shape, space


def _generate(asked: Generate, name: str, model: Mapping[str, Any], engine: Engine) -> Work:
    pipelines = engine.settings.pipelines
    pipeline = asked.pipeline or next(iter(pipelines), None)
    if pipeline is None or pipeline not in pipelines:
        why = "no pipeline is configured here" if asked.pipeline is None else f"pipeline={pipeline!r}: there is none"
        raise ServiceError("model_not_found", why, "pipeline")
    width, height = asked.width or 1024, asked.height or 1024
    _check_pixels(height * model["scale"], width * model["scale"], engine.settings.limits, "width")
    steps = asked.generator_steps or pipelines[pipeline].steps
    if (steps or 0) > 1000 or (asked.stop_after or 0) > (steps or 1000):
        raise ServiceError("invalid_field", f"stop_after={asked.stop_after}: of {steps} steps", "stop_after")
    options = given(
        negative=asked.negative_prompt,
        width=asked.width,
        height=asked.height,
        generator_steps=asked.generator_steps,
        guidance=asked.guidance,
        stop_after=asked.stop_after,
        as_image=model["space"] == "rgb",
    )
    shape, pixels = (height, width), height * width * model["scale"] ** 2
    return Work("generate", name, b"", shape, pixels, asked.prompt, asked.seed, asked.steps, options, pipeline)
