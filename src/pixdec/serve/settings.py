"""What a service holds and allows: from a TOML file, or from Python."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pixdec.generation.settings import Dtype
from pixdec.inference.config import InferenceConfig, parse_memory

MAX_BATCH = 64


class Strict(BaseModel):
    """No field that is not declared, no value of another type, no number that is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class ModelSettings(Strict):
    """A decoder that is offered: `source` is a name of `pixdec models`, or a file or folder."""

    source: str
    device: str | None = None
    dtype: Dtype | None = None
    memory: str | None = None
    quantize: str | None = Field(default=None, pattern="^(int8|int8-weights|fp8)$")
    tile: int | None = Field(default=None, ge=64)
    space: str | None = None
    vae: str | None = None  # what encodes images for a decoder of latents, and decodes them for one of images

    def config(self) -> InferenceConfig:
        """How it decodes."""
        return InferenceConfig(memory=self.memory, quantize=self.quantize, tile=self.tile, exact=True)  # pyright: ignore[reportArgumentType]


class PipelineSettings(Strict):
    """A diffusers pipeline that is offered: `source` is a hub id or a folder."""

    source: str
    device: str | None = None
    offload: bool = False
    steps: int | None = Field(default=None, ge=1)
    guidance: float | None = None


class Limits(Strict):
    """What one request may ask for."""

    pixels: int = Field(default=4096 * 4096, ge=1)  # of an output
    bytes: int = Field(default=32 << 20, ge=1024)  # of a request's body
    n: int = Field(default=4, ge=1)
    steps: int = Field(default=50, ge=1)
    strength: float = Field(default=0.8, ge=0, le=0.8)
    prompt: int = Field(default=4000, ge=0)  # characters


class Profile(Strict):
    """What a request gets that names it, for each of these that it leaves out itself."""

    strength: float | None = Field(default=None, ge=0, le=0.8)
    sigma: float | None = Field(default=None, ge=0, le=1)
    steps: int | None = Field(default=None, ge=1)
    stop_after: int | None = Field(default=None, ge=1)


class ServeSettings(Strict):
    """A service.

    Attributes:
        models: by the name that requests use; the first is what they get that name none.
        pipelines: by name.
        batch: how many images are decoded together at most; without it 4 on a GPU, 1 on a processor, which together are
            no faster.
        delay: for how many seconds the first of a batch waits for others.
        queue: how many requests wait at most.
        deadline: for how many seconds a request waits at most before it starts, and the most that it may ask for.
        load: at the start, rather than when a model is first asked for.
        model_memory: of the weights that a worker holds; the least recently used go. None: all stay.
        silence: for how many seconds a worker says nothing before it counts as missing, and three times so before it
            is replaced.
        start: for how many seconds a worker may take to start.
        keep: for how many seconds a result stays, and how many bytes they may take.
        grace: for how many seconds a shutdown waits for what runs.
        keys: names of keys to their secrets; with none, whoever reaches the service may use it.
        origins: of the pages of other hosts that may call the service (CORS).
        profiles: of requests: how faithful or creative, in one word.
        body_seconds: for how many seconds a client may take to send a request.
    """

    models: dict[str, ModelSettings] = Field(
        default_factory=lambda: {"pixdec-nano": ModelSettings(source="pixdec-nano")}
    )
    pipelines: dict[str, PipelineSettings] = Field(default_factory=dict)
    limits: Limits = Limits()
    batch: int | None = Field(default=None, ge=1, le=MAX_BATCH)
    delay: float = Field(default=0.005, ge=0, le=10)
    queue: int = Field(default=64, ge=1)
    deadline: float = Field(default=120, gt=0)
    load: bool = True
    model_memory: str | None = None
    silence: float = Field(default=4, gt=0)
    start: float = Field(default=180, gt=0)
    keep: float = Field(default=600, gt=0)
    keep_bytes: int = Field(default=1 << 30, ge=0)
    grace: float = Field(default=30, ge=0)
    keys: dict[str, str] = Field(default_factory=dict)
    origins: tuple[str, ...] = Field(default=(), strict=False)
    body_seconds: float = Field(default=60, gt=0)
    profiles: dict[str, Profile] = Field(
        default_factory=lambda: {
            "faithful": Profile(strength=0.0),
            "balanced": Profile(strength=0.15),
            "creative": Profile(strength=0.4),
        }
    )

    def on(self, device: str) -> ServeSettings:
        """With this device for the models and pipelines that name none."""
        placed = dict[str, Any]()
        for kind in ("models", "pipelines"):
            entries: dict[str, Any] = getattr(self, kind)
            placed[kind] = {n: e if e.device else e.model_copy(update={"device": device}) for n, e in entries.items()}
        return self.model_copy(update=placed)

    def batch_on(self, device: str) -> int:
        """How many images are decoded together at most on a device."""
        return self.batch or (1 if device == "cpu" else 4)

    def model_post_init(self, context: Any, /) -> None:
        """See that amounts are amounts.

        Raises:
            ValueError: one is not.
        """
        for each in (self.model_memory, *(model.memory for model in self.models.values())):
            if each not in (None, "auto"):
                parse_memory(each)
        if not self.models:
            raise ValueError("models={}: expected at least one decoder")


def models_named(sources: Iterable[str]) -> dict[str, ModelSettings]:
    """Decoders by the name of their file, or by that of `pixdec models`."""
    return {Path(each).stem if Path(each).exists() else each: ModelSettings(source=each) for each in sources}


def read_settings(path: str | Path | None) -> ServeSettings:
    """The settings in a TOML file, or the usual ones; where no keys are named, the environment's PIXDEC_API_KEY is one.

    Raises:
        ValueError: no such file, no TOML, or an unknown key or value, in one line.
    """
    key = os.environ.get("PIXDEC_API_KEY")
    usual: dict[str, Any] = {"keys": {"environment": key}} if key else {}
    try:
        found = usual if path is None else usual | tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: no TOML ({error})") from error
    try:
        return ServeSettings.model_validate(found)
    except ValidationError as error:
        field, message = first_fault(error)
        raise ValueError(f"{path}: {field}: {message}") from error


def first_fault(error: ValidationError) -> tuple[str, str]:
    """The field and the fault of the first mistake that pydantic found, with what was given."""
    fault = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in fault["loc"]) or "the whole"
    if fault["type"] == "extra_forbidden":
        return field, "unknown; see the documentation for what there is"
    given = repr(fault["input"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in ("missing", "value_error"):
        return field, message
    return field, f"{message}, got {given if len(given) <= 60 else given[:57] + '...'}"
