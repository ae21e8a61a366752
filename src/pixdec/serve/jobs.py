"""A job: one image that is asked for, from the queue to its result, and what those who watch it are told."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from PIL import Image

from pixdec.io.metadata import NOTHING, Metadata
from pixdec.io.writing import encode_image

Kind = Literal["upscale", "decode", "generate"]
State = Literal["queued", "running", "done", "failed", "cancelled", "expired"]
FORMATS = {"png": "PNG", "webp": "WEBP", "jpeg": "JPEG"}
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled", "expired"})


@dataclass(frozen=True)
class Work:
    """What a worker is given to do. `data` is the file of an image or of a latent, as it was sent.

    Attributes:
        shape: what of its size decides with which others it can be decoded together.
        pixels: of the output, as its header promises.
        options: of `UpscaleSettings` for an image; sigma and space for a latent; the call of a pipeline.
    """

    kind: Kind
    model: str
    data: bytes
    shape: tuple[object, ...]
    pixels: int
    prompt: str = ""
    seed: int = 0
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    pipeline: str | None = None

    @property
    def batch_key(self) -> tuple[object, ...]:
        """Works of one key may be decoded together."""
        return (self.kind, self.model, self.pipeline, self.shape, self.steps)


_CODES = {
    400: "invalid_field invalid_form invalid_json invalid_request",
    401: "invalid_api_key",
    404: "not_found model_not_found job_not_found not_done",
    405: "method_not_allowed",
    408: "body_too_slow",
    410: "cancelled expired",
    413: "body_too_large too_many_pixels",
    415: "unsupported_media_type not_an_image not_a_latent",
    422: "unprocessable",
    429: "queue_full",
    500: "internal",
    503: "not_ready shutting_down deadline_exceeded worker_lost out_of_memory",
}
_STATUS = {code: status for status, codes in _CODES.items() for code in codes.split()}


@dataclass(eq=False)
class ServiceError(Exception):
    """Why there is no image: a code for programs, a line for people, the field that is wrong, and in how many seconds
    to come again, if that helps."""

    code: str
    message: str
    param: str | None = None
    retry_after: float = 2

    @property
    def status(self) -> int:
        """Of HTTP."""
        return _STATUS[self.code]


@dataclass(frozen=True)
class Pixels:
    """An image as bytes: mode RGB or RGBA, (width, height), what its file said else, and how it was made."""

    mode: str
    size: tuple[int, int]
    data: bytes
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    metadata: Metadata = NOTHING

    @classmethod
    def of(cls, image: Image.Image, settings: Mapping[str, object], metadata: Metadata = NOTHING) -> Pixels:
        """Those of a PIL image."""
        return cls(image.mode, image.size, image.tobytes(), settings, metadata)

    def encoded(self, kind: str, quality: int | None = None) -> bytes:
        """As a file of that kind, a key of `FORMATS`. A JPEG has no transparency: its image is on white."""
        image = Image.frombytes(self.mode, self.size, self.data)
        if kind == "jpeg" and self.mode == "RGBA":
            white = Image.new("RGB", self.size, "white")
            white.paste(image, mask=image.getchannel("A"))
            image = white
        form = FORMATS[kind]
        return encode_image(image, form, settings=self.settings, metadata=self.metadata, quality=quality).getvalue()


def given(**values: Any) -> dict[str, Any]:
    """Those that are not None."""
    return {name: value for name, value in values.items() if value is not None}


Listener = Callable[[str, dict[str, Any]], object]


class Job:
    """One image that is asked for. The engine changes it; everyone may read it, `watch` it and `wait` for it."""

    def __init__(self, work: Work, deadline: float, queue: Sequence[Job] = (), *, previews: bool = False):
        self.id = secrets.token_urlsafe(12)
        self.work, self.previews, self._queue = work, previews, queue
        self.state: State = "queued"
        self.step, self.steps = 0, work.steps
        self.seconds: dict[str, float] = {}
        self.failure: ServiceError | None = None
        self.result: Pixels | None = None
        self.first: Pixels | None = None
        self.size: tuple[int, int] | None = None
        self.peak: int | None = None
        self.attempts = 0
        self.created = time.monotonic()
        self.deadline = self.created + deadline
        self.ended_at: float | None = None
        self.written: Callable[[float], object] = lambda seconds: None  # called with the time of every encoding
        self._ended = threading.Event()
        self._listeners: list[Listener] = []

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def watch(self, listener: Listener) -> Callable[[], None]:
        """Call `listener(event, record)` for all that happens from now on, from the thread where it does; what comes
        back ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    def tell(self, event: str, **more: Any) -> None:
        """Tell those who watch."""
        for listener in list(self._listeners):
            listener(event, more)

    def end(self, state: State, failure: ServiceError | None = None) -> None:
        """The last that happens to it; what ended stays as it is."""
        if self.ended:
            return
        self.failure, self.ended_at = failure, time.monotonic()
        self.state = state
        self._ended.set()
        self.tell("state")

    def wait(self, timeout: float | None = None) -> Pixels:
        """The result.

        Raises:
            ServiceError: there is none.
            TimeoutError: nor in that many seconds.
        """
        if not self._ended.wait(timeout):
            raise TimeoutError(f"{self.id}: still {self.state} after {timeout} s")
        if self.result is None:
            raise self.failure or ServiceError("cancelled", "the job was cancelled")
        return self.result

    def record(self) -> dict[str, Any]:
        """What the service tells of it."""
        work, link = self.work, f"/v1/jobs/{self.id}"
        width, height = self.size or (None, None)
        settings = given(prompt=work.prompt or None, pipeline=work.pipeline, seed=work.seed, steps=self.steps)
        return {
            "id": self.id,
            "object": "job",
            "kind": work.kind,
            "state": self.state,
            "position": next((place for place, job in enumerate(list(self._queue)) if job is self), None),
            "step": self.step,
            "steps": self.steps,
            "attempts": self.attempts,
            "model": work.model,
            "seed": work.seed,
            "width": width,
            "height": height,
            "settings": {**settings, **work.options},
            "seconds": {name: round(value, 4) for name, value in self.seconds.items()},
            "peak_bytes": self.peak,
            "error": None if self.failure is None else {"code": self.failure.code, "message": self.failure.message},
            "links": {
                "self": link,
                "events": f"{link}/events",
                "result": f"{link}/result",
                "first": f"{link}/first",
            },
        }
