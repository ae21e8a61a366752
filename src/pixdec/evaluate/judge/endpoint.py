"""Judges: a model behind an OpenAI-compatible endpoint, and a stand-in for tests that prefers the richer spectrum."""

from __future__ import annotations

import base64
import email.utils
import http.client
import io
import json
import math
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import numpy as np
from PIL import Image

from pixdec.evaluate.judge.prompt import AS_JSON, RESPONSE_FORMAT
from pixdec.evaluate.metrics.fidelity import QUANTIZATION_POWER, radial_spectrum
from pixdec.io.files import reason_of

DEFAULTS: Mapping[str, object] = {"temperature": 0, "max_tokens": 1024}
RETRIED = frozenset({408, 409, 429, *range(500, 600)})
HOPELESS = frozenset({*range(300, 400), 401, 402, 403, 404, 405})  # what one call gets, all get
LONGEST_WAIT = 600.0  # seconds that a Retry-After is obeyed; with more the call has failed
_LARGEST = 8 << 20  # bytes of an answer
_LOCAL = ("127.0.0.1", "localhost", "::1")

Wait = Callable[[float], bool]
"""Waits so many seconds; True: stop instead of trying again. `threading.Event.wait` is one."""


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    Attributes:
        text: the answer; None if there is none, and then why is in `error`.
        hopeless: the next question will fail alike (a wrong key, a wrong address).
        down: the endpoint does not work: it failed to the last try, or what it sends is no answer.
        model: what the endpoint says answered.
        tokens: of question and answer; None: the endpoint did not say.
        tries: calls that were made; `unknown` of them may have been charged for without a word about tokens.
    """

    text: str | None = None
    error: str | None = None
    hopeless: bool = False
    down: bool = False
    model: str | None = None
    tokens: tuple[int, int] | None = None
    tries: int = 1
    unknown: int = 0


class Judge(Protocol):
    """Who judges: a name, and all that the answers depend on besides prompt and images (JSON)."""

    @property
    def name(self) -> str: ...

    @property
    def parameters(self) -> Mapping[str, object]: ...

    def ask(self, prompt: str, images: Sequence[Image.Image], wait: Wait) -> Answer:
        """The answer on image A and image B. What goes wrong is in it, not raised."""
        ...


class _FailedError(Exception):
    """A call failed. again: whether trying again may help, after so many seconds; charged: it may cost all the same."""

    def __init__(self, reason: str, *, again: bool = False, after: float | None = None, charged: bool = False) -> None:
        super().__init__(reason)
        self.again, self.after, self.charged = again, after, charged
        self.hopeless, self.down = False, True


@dataclass(frozen=True)
class Endpoint:
    """A model behind an OpenAI-compatible endpoint (OpenAI, Gemini, Claude, vLLM and many more).

    One question is one call; it is repeated only where that helps (408, 409, 429, 5xx, no connection, no answer in
    time), and never asked of another model or in another form.

    Attributes:
        url: the base, such as http://127.0.0.1:8000/v1, or that of .../chat/completions itself.
        name: the model.
        key: is sent as the bearer token, and kept in no record.
        body: further fields of the request; None removes one of DEFAULTS.
        structured: ask for the verdict as JSON by a schema; not all endpoints can.
        timeout: seconds for a whole answer.
        tries: calls for a question, at most.
    """

    url: str
    name: str
    key: str | None = field(default=None, repr=False)
    body: Mapping[str, object] = field(default_factory=dict[str, object])
    structured: bool = False
    timeout: float = 120.0
    tries: int = 5

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"endpoint={self.url}: expected a URL such as http://127.0.0.1:8000/v1")
        if self.key is not None and not (self.key.isascii() and self.key.isprintable()):
            raise ValueError("key: expected printable ASCII characters; is a line break in it?")
        for name in ("timeout", "tries"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name}={value}: expected more than 0")

    @property
    def parameters(self) -> Mapping[str, object]:
        sent = {**DEFAULTS, **self.body, "structured": self.structured or None}
        return {name: value for name, value in sent.items() if value is not None}

    def ask(self, prompt: str, images: Sequence[Image.Image], wait: Wait) -> Answer:
        request, unknown, tries = self._request(prompt, images), 0, 0
        while True:
            tries += 1
            try:
                return replace(self._call(request), tries=tries, unknown=unknown)
            except _FailedError as failed:
                reason = str(failed).replace(self.key or "\0", "***")
                unknown += failed.charged
                delay = failed.after
                if delay is None:
                    delay = random.uniform(0.5, 1) * min(60, 2**tries)
                if not failed.again or tries == self.tries or delay > LONGEST_WAIT or wait(delay):
                    return Answer(
                        error=reason, hopeless=failed.hopeless, down=failed.down, tries=tries, unknown=unknown
                    )

    def _request(self, prompt: str, images: Sequence[Image.Image]) -> urllib.request.Request:
        content: list[object] = [{"type": "text", "text": prompt + AS_JSON if self.structured else prompt}]
        for label, image in zip("AB"[: len(images)], images, strict=True):
            encoded = io.BytesIO()
            image.save(encoded, "PNG", compress_level=1)
            data = "data:image/png;base64," + base64.b64encode(encoded.getvalue()).decode()
            content.append({"type": "text", "text": f"Image {label}"})
            content.append({"type": "image_url", "image_url": {"url": data, "detail": "high"}})
        sent = {name: value for name, value in self.parameters.items() if name != "structured"}
        if self.structured:
            sent["response_format"] = RESPONSE_FORMAT
        body = {"model": self.name, "messages": [{"role": "user", "content": content}], **sent}
        parts = urlsplit(self.url)
        path = parts.path.rstrip("/")
        path = path if path.endswith("/chat/completions") else path + "/chat/completions"
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "pixdec"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        return urllib.request.Request(urlunsplit(parts._replace(path=path)), json.dumps(body).encode(), headers)

    def _call(self, request: urllib.request.Request) -> Answer:
        local = [urllib.request.ProxyHandler({})] if urlsplit(self.url).hostname in _LOCAL else []
        end = time.monotonic() + self.timeout
        try:
            with urllib.request.build_opener(_NoRedirect, *local).open(request, timeout=self.timeout) as response:
                data = _read(response, end)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from error
        except (OSError, http.client.HTTPException) as error:
            unsent = isinstance(error, urllib.error.URLError)  # what goes wrong later is not wrapped in it
            cause = error.reason if isinstance(error, urllib.error.URLError) else error
            late = isinstance(cause, TimeoutError)
            what = f"no answer within {self.timeout:g} s" if late else f"no connection ({reason_of(cause)})"
            raise _FailedError(what, again=True, charged=not unsent) from error
        return _answer_in(data)

    def _refused(self, error: urllib.error.HTTPError) -> _FailedError:
        with error:
            try:
                said = _message(error.read(1 << 16))
            except (OSError, http.client.HTTPException):
                said = ""
        hint = ""
        if error.code in (401, 403):
            hint = "; is the key right?"
        elif error.code in range(300, 400) or error.code in (404, 405):
            hint = "; are address and model right? The address usually ends in /v1"
        elif error.code in (400, 422) and self.structured:
            hint = "; if this model knows no structured output, ask without it"
        after = _seconds(error.headers.get("Retry-After"))
        if after is not None and after > LONGEST_WAIT:
            hint = f"; try again in {after:.0f} s"
        reason = f"HTTP {error.code} {error.reason}".rstrip() + (f": {said}" if said else "") + hint
        failed = _FailedError(reason, again=error.code in RETRIED, after=after)
        failed.hopeless, failed.down = error.code in HOPELESS, failed.again
        return failed


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to wherever it points."""

    def redirect_request(self, *_: object, **__: object) -> None:
        return None


def _read(response: http.client.HTTPResponse, end: float) -> bytes:
    """The whole body, by the time `end`: a timeout of the socket is one of each piece."""
    data = bytearray()
    while piece := response.read1(1 << 16):
        data += piece
        if time.monotonic() > end:
            raise TimeoutError
        if len(data) > _LARGEST:
            raise _FailedError(f"an answer of more than {_LARGEST >> 20} MB", charged=True)
    if response.length:
        raise http.client.IncompleteRead(bytes(data), response.length)
    return bytes(data)


def _answer_in(data: bytes) -> Answer:
    """The answer in the body of a 200."""
    try:
        body: Any = json.loads(data)
    except ValueError as error:
        start = " ".join(data[:80].decode(errors="replace").split())
        kind = "HTML" if start.startswith("<") else "not JSON"
        raise _FailedError(f"the answer is {kind}: {start!r}; is the address right?", charged=kind != "HTML") from error
    try:
        choice = body["choices"][0]
        message = choice["message"]
        text, refusal = message.get("content"), message.get("refusal")
        if isinstance(text, list):
            text = "".join(part.get("text") or "" for part in text)
        if not isinstance(text, str | None):
            raise TypeError
        model, usage = body.get("model"), body.get("usage") or {}
        used: list[Any] = [usage.get(f"{part}_tokens") for part in ("prompt", "completion")]
    except (LookupError, TypeError, AttributeError) as error:
        said = _message(data)
        raise _FailedError(f"JSON without an answer: {said}; expected choices[0].message", charged=True) from error
    tokens = (used[0], used[1]) if all(isinstance(each, int) for each in used) else None
    reply = Answer(text or None, model=str(model) if model else None, tokens=tokens)
    if text:
        return reply
    why = f"refused: {' '.join(str(refusal).split())[:200]}" if refusal else "an empty answer"
    if choice.get("finish_reason") == "length":
        why += "; it was cut off at max_tokens, allow more of them"
    elif not refusal:
        why += f" (finish_reason {choice.get('finish_reason')})"
    return replace(reply, error=why)


def _message(data: bytes) -> str:
    """What an error says, on one line."""
    text = data.decode(errors="replace")
    try:
        body: Any = json.loads(text)
        body = body[0] if isinstance(body, list) and body else body
        error = body.get("error", body.get("message", body))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        pass
    return " ".join(text.split())[:200]


def _seconds(value: str | None) -> float | None:
    """Of a Retry-After: seconds or a date."""
    if value is None:
        return None
    try:
        found = float(value)
    except ValueError:
        try:
            found = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return max(0.0, found) if math.isfinite(found) else None


@dataclass(frozen=True)
class FakeJudge:
    """Prefers the image with more power in the upper half of its log-spectrum, by that difference and seeded noise.

    The same question has the same answer, as a model's at temperature 0; of two equal images it takes A or B by chance.

    Attributes:
        seed: of the noise.
        noise: its standard deviation, in bels.
    """

    seed: int = 0
    noise: float = 0.02
    name: str = "fake"

    @property
    def parameters(self) -> Mapping[str, object]:
        return {"temperature": 0, "seed": self.seed, "noise": self.noise}

    def ask(self, prompt: str, images: Sequence[Image.Image], wait: Wait) -> Answer:
        del prompt, wait
        logs = [np.log10(np.maximum(radial_spectrum(image), QUANTIZATION_POWER)) for image in images]
        first, second = (float(log[len(log) // 2 :].mean()) for log in logs)
        difference = first - second
        draw = random.Random(f"{self.seed} {[log.tobytes().hex() for log in logs]}")
        better = "A" if difference + draw.gauss(0, self.noise) > 0 else "B"
        return Answer(f"VERDICT: {better}\nIts spectrum is richer by {abs(difference):.3f} bels.", model=self.name)
