"""A person as judge: a page on this machine that shows pairs blindly, and keeps each choice as a round of a judge."""

from __future__ import annotations

import io
import random
import re
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from jinja2 import Environment

from pixdec.evaluate.judge.asking import Asking, Question, questions_of
from pixdec.evaluate.judge.pairs import Failed, Pair, Views
from pixdec.evaluate.judge.rounds import Journal
from pixdec.io.files import reason_of

VIEWS = Views(max_side=0, crops=1, crop_side=640)  # two of them fit a screen at 100 %
QUESTION = (
    "Which of the two images looks better? Look at sharpness, texture, and faults such as noise, halos or blocks."
)


class Session:
    """The questions for a person, a judge called human:NAME, or another `kind` of judge: each view of each pair once,
    in random order, ours first in half of them.

    Attributes:
        questions: all of them; answers of earlier sessions keep their order of images.
        failed: pairs that cannot be shown.
        done: indices of those with an answer, of this session or earlier ones.
    """

    def __init__(
        self,
        pairs: Sequence[Pair | Failed],
        person: str,
        path: str | Path,
        views: Views = VIEWS,
        seed: int = 0,
        kind: str = "human",
    ) -> None:
        if not person.strip():
            raise ValueError(f"{kind}={person!r}: expected a name, which tells several people apart")
        self.journal, asking = Journal(Path(path)), Asking(QUESTION, views)
        self.failed = [pair for pair in pairs if isinstance(pair, Failed)]
        orders = list[tuple[Question, Question]]()  # of each view: ours first, ours second
        for pair in pairs:
            if isinstance(pair, Pair):
                try:
                    found = questions_of(pair, f"{kind}:{person}", {}, asking)
                except (ValueError, OSError) as error:
                    self.failed.append(Failed(pair.title, reason_of(error)))
                    continue
                orders += zip(found[::2], found[1::2], strict=True)
        draw = random.Random(seed)
        draw.shuffle(orders)
        sides = [index < len(orders) // 2 for index in range(len(orders))]
        draw.shuffle(sides)
        earlier = [next((each for each in both if self.journal.own(each.round)), None) for both in orders]
        self.questions = [
            each or both[0 if first else 1] for each, both, first in zip(earlier, orders, sides, strict=True)
        ]
        self.done = {index for index, each in enumerate(earlier) if each is not None}
        self.journal.keep(asking.settings({}))
        self.images = lru_cache(8)(self._images)
        self.secret = secrets.token_hex(8)  # no other page can send answers, nor its cache show another's images

    def next(self) -> int | None:
        """The index of the first question without an answer. A pair whose images are damaged is `failed`, left out."""
        for index in range(len(self.questions)):
            try:
                if index not in self.done and self.images(index):
                    return index
            except ValueError as error:
                self.failed.append(Failed(self.questions[index].pair.title, reason_of(error)))
                self.done.add(index)
        return None

    def choose(self, index: int, choice: str) -> None:
        """Keep an answer, "A" or "B"; a later one to the same question replaces it."""
        if choice not in ("A", "B") or index not in range(len(self.questions)):
            raise ValueError(f"question {index}, choice {choice!r}: expected A or B, and one of {len(self.questions)}")
        self.journal.add(self.questions[index].round, answer=f"VERDICT: {choice}")
        self.done.add(index)

    def _images(self, index: int) -> list[bytes]:
        """Image A and image B of a question, as PNG."""
        question, encoded = self.questions[index], [io.BytesIO(), io.BytesIO()]
        for image, stream in zip(question.shown(question.pair.images()), encoded, strict=True):
            image.save(stream, "PNG", compress_level=1)
        return [stream.getvalue() for stream in encoded]


def serve(session: Session, port: int = 0, ready: Callable[[str], None] = print) -> None:
    """Serve the page on 127.0.0.1 until all questions are answered.

    Args:
        session: the questions.
        port: 0 takes a free one.
        ready: gets the address of the page.

    Raises:
        OSError: the port is taken, or an answer cannot be kept.
    """

    class Handler(_Handler):
        pass

    Handler.session = session
    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot serve on port {port}: {reason_of(error)}; choose another") from error
    with server:
        ready(f"http://127.0.0.1:{server.server_port}/{session.secret}/")
        server.serve_forever(poll_interval=0.1)
    if Handler.failed is not None:
        raise Handler.failed


class _Handler(BaseHTTPRequestHandler):
    session: Session
    failed: OSError | None = None

    def do_GET(self) -> None:
        secret, _, file = urlsplit(self.path).path[1:].partition("/")
        image = re.fullmatch(r"(\d+)-([AB])\.png", file)
        if secret == self.session.secret and file == "":
            asked = self._index("question")
            self._page(self.session.next() if asked is None else asked)
        elif secret == self.session.secret and image is not None and int(image[1]) < len(self.session.questions):
            try:
                self._send(self.session.images(int(image[1]))["AB".index(image[2])], "image/png")
            except ValueError as error:  # fetched ahead, and damaged
                self.send_error(HTTPStatus.NOT_FOUND, str(error))
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:
        sent = parse_qs(self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 1000)).decode())
        if self.path != f"/{self.session.secret}/":
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        try:
            self.session.choose(int(sent["question"][0]), sent["choice"][0])
        except (KeyError, ValueError):
            self.send_error(HTTPStatus.BAD_REQUEST)
            return
        except OSError as error:  # such as a full disk: no answer may be lost without a word
            type(self).failed = error
            self.send_error(HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
            self._end()
            return
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", f"?after={sent['question'][0]}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _page(self, index: int | None) -> None:
        questions, done = self.session.questions, self.session.done
        later = next((each for each in range((index or 0) + 1, len(questions)) if each not in done), None)
        template = resources.files("pixdec.evaluate.judge").joinpath("human.html").read_text(encoding="utf-8")
        page = Environment(autoescape=True).from_string(template)
        about = {"question": QUESTION, "done": len(done), "total": len(questions)}
        text = page.render(**about, index=index, after=self._index("after"), later=later)
        self._send(text.encode(), "text/html; charset=utf-8")
        if index is None:
            self._end()

    def _index(self, name: str) -> int | None:
        """The question that a field of the address names."""
        value = parse_qs(urlsplit(self.path).query).get(name, [""])[0]
        return int(value) if value.isdecimal() and int(value) < len(self.session.questions) else None

    def _send(self, data: bytes, kind: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "max-age=600" if kind == "image/png" else "no-store")
        self.end_headers()
        self.wfile.write(data)

    def _end(self) -> None:
        threading.Thread(target=self.server.shutdown).start()  # from this thread it would wait for itself

    def log_message(self, format: str, *args: object) -> None:
        del format, args
