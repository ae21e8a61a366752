"""The rounds of judges on disk: one line of JSON each, safe on the disk before it counts.

A line holds the answer as it was given; verdicts are read out of it again each time, so a better parser needs no new
calls. Of several lines for one round the last counts.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pixdec.evaluate.judge.prompt import verdict_of
from pixdec.io.files import write_whole
from pixdec.io.json_lines import append_line, key_of, read_lines


@dataclass(frozen=True)
class Round:
    """One question to a judge, and what came of it.

    Attributes:
        key: digest of all that the answer depends on: prompt, the two images in order, judge, parameters, view.
        judge: the model that was asked for, or "human:NAME".
        settings: digest of prompt and parameters; rounds of different ones are not counted together.
        pair, ours, other: the image and the two methods.
        view, number: what was shown, and which of several crops.
        ours_first: whether ours was image A.
        digests: of the two files, ours and the other's.
        answer, error: the text of the answer; None if there was none, and then why.
        model: what the endpoint says answered.
        time: when, UTC.
        tokens, cost: of question and answer, as counted by the endpoint; in USD.
        tries: calls made for it; 0 for an answer known from an equal question.
    """

    key: str
    judge: str
    settings: str
    pair: str
    ours: str
    other: str
    view: str
    number: int
    ours_first: bool
    digests: tuple[str, str]
    answer: str | None = None
    error: str | None = None
    model: str | None = None
    time: str = ""
    tokens: tuple[int, int] = (0, 0)
    cost: float = 0.0
    tries: int = 1

    @property
    def won(self) -> bool | None:
        """Whether ours was chosen; None: no valid verdict."""
        verdict = None if self.answer is None else verdict_of(self.answer)
        return None if verdict is None else (verdict == "A") == self.ours_first

    @property
    def failure(self) -> str | None:
        """Why there is no verdict."""
        if self.won is not None:
            return None
        if self.error is not None or not self.answer:
            return self.error or "the answer is empty"
        return f"no verdict in the answer: {' '.join(self.answer.split())[:200]!r}"

    @property
    def title(self) -> str:
        order = (self.ours, self.other) if self.ours_first else (self.other, self.ours)
        crop = f" {self.number + 1}" if self.view.startswith("crop") else ""
        return f"{self.pair}  {self.view}{crop}  {' | '.join(order)}"

    @property
    def slot(self) -> tuple[str, str, str, str, str, str, int, bool]:
        """What a later line replaces."""
        where = self.judge, self.settings, self.ours, self.other, self.pair
        return (*where, self.view, self.number, self.ours_first)


def read_rounds(path: Path) -> list[Round]:
    """The rounds of a file, in order; ValueError, OSError: see `read_lines`."""
    names = {field.name for field in fields(Round)}

    def read(line: dict[str, Any]) -> Round:
        record: dict[str, Any] = {name: value for name, value in line.items() if name in names}
        record |= {name: tuple(record[name]) for name in ("digests", "tokens")}
        return Round(**record)

    return read_lines(path, read, "is no round of a judge; remove the line")


def append_round(path: Path, made: Round) -> None:
    """Add a line, and see that it is on the disk; OSError in one line if it cannot be written."""
    append_line(path, json.dumps(asdict(made)))


class Journal:
    """The rounds of a file, and those that are added: one that failed is asked again. `shared`: equal questions have
    equal answers, so that one serves for all: only where nothing is drawn. Threads may share it."""

    def __init__(self, path: Path, *, shared: bool = False) -> None:
        self.path, self.shared, self.lock, self.rounds = path, shared, threading.Lock(), read_rounds(path)
        valid = [each for each in self.rounds if each.won is not None]
        self._own = {(*each.slot, each.key): each for each in valid}
        self._equal = {each.key: each for each in valid}

    def own(self, asked: Round) -> Round | None:
        """The verdict of this very question."""
        return self._own.get((*asked.slot, asked.key))

    def equal(self, asked: Round) -> Round | None:
        """That of an equal one."""
        return self._equal.get(asked.key) if self.shared else None

    def expect(self, made: Round) -> Round:
        """Know a round without writing it."""
        if made.won is not None:
            self._equal[made.key] = made
        return made

    def add(self, made: Round, **found: Any) -> Round:
        """A round with what was found: on the disk before it counts. OSError if it cannot be written."""
        made = replace(made, **{"time": datetime.now(UTC).isoformat(timespec="seconds"), **found})
        with self.lock:
            append_round(self.path, made)
            return self.expect(made)

    def keep(self, settings: Mapping[str, object]) -> None:
        """Write the prompt and parameters that rounds depend on beside them, under the digest that stands in them."""
        file = self.path.with_name(f"{self.path.stem}-{key_of(settings)[:8]}.json")
        if not file.exists():
            write_whole(file, json.dumps(settings, indent=1))
