"""Asking a judge about all pairs, twice each with the order swapped: parallel, resumable, within a limit on money."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from pixdec.evaluate.judge.endpoint import Answer, Judge
from pixdec.evaluate.judge.pairs import Failed, Pair, View, Views
from pixdec.evaluate.judge.prompt import PROMPT
from pixdec.evaluate.judge.rounds import Journal, Round
from pixdec.io.arguments import check_range
from pixdec.io.files import reason_of
from pixdec.io.json_lines import key_of

ROUNDS = "judge.jsonl"  # in the output folder
GIVE_UP = 5  # questions in a row, with all their tries, that no answer came to: asking on would take hours


@dataclass(frozen=True)
class Price:
    """USD for a million tokens."""

    input: float
    output: float

    def of(self, tokens: tuple[int, int]) -> float:
        return (self.input * tokens[0] + self.output * tokens[1]) / 1e6


@dataclass(frozen=True)
class Asking:
    """How a judge is asked.

    Attributes:
        prompt: the text before the images.
        views: what is shown of each pair.
        concurrency: pairs that are asked about at once.
        price: of the tokens; None: nothing is known of costs.
        max_cost: USD for all rounds of this judge in the file. A question that may exceed it is not asked.
    """

    prompt: str = PROMPT
    views: Views = field(default_factory=Views)
    concurrency: int = 4
    price: Price | None = None
    max_cost: float | None = None

    def __post_init__(self) -> None:
        check_range(self, ["concurrency"], 1)
        if self.max_cost is not None and self.price is None:
            raise ValueError(f"max_cost={self.max_cost}: a limit needs the price of tokens")

    def settings(self, parameters: Mapping[str, object]) -> dict[str, object]:
        """What answers depend on besides judge and images."""
        return {"prompt": self.prompt, "parameters": dict(parameters)}

    def tokens(self, parameters: Mapping[str, object], size: tuple[int, int], view: View) -> tuple[int, int]:
        """Of one question, about, and of its answer, at most: 4 characters of text or 750 pixels a token."""
        width, height = view.shown_size(size)
        limit = parameters.get("max_tokens", parameters.get("max_completion_tokens"))
        return len(self.prompt) // 4 + 20 + 2 * round(width * height / 750), limit if isinstance(limit, int) else 1024


@dataclass(frozen=True)
class Question:
    """A view of a pair in one order; `round`: what will be kept of it, without an answer yet."""

    pair: Pair
    view: View
    round: Round

    def shown(self, images: Sequence[Image.Image]) -> list[Image.Image]:
        """Image A and image B, from our image and the other."""
        views = self.view.of(images, "".join(sorted(self.pair.digests)))
        return views if self.round.ours_first else views[::-1]


@dataclass(frozen=True)
class Plan:
    """What a run would do: calls, those that earlier runs made, tokens of questions (about) and of answers (at most),
    and what they cost at most; None without a price."""

    calls: int
    earlier: int
    tokens: tuple[int, int]
    cost: float | None


def questions_of(pair: Pair, judge: str, parameters: Mapping[str, object], asking: Asking) -> list[Question]:
    """All rounds of a pair: each view, ours first and ours second. ValueError, OSError: a file cannot be read."""
    settings, found = asking.settings(parameters), list[Question]()
    for view in asking.views.of(pair):
        for ours_first in (True, False):
            images = pair.digests if ours_first else pair.digests[::-1]
            key = key_of({**settings, "judge": judge, "images": images, "view": [view.name, view.number]})
            where = (pair.name, *pair.methods, view.name, view.number, ours_first, pair.digests)
            found.append(Question(pair, view, Round(key, judge, key_of(settings)[:8], *where)))
    return found


def plan(pairs: Sequence[Pair | Failed], judge: Judge, path: str | Path, asking: Asking) -> Plan:
    """What `judge_pairs` would do. Pairs that cannot be read count nothing."""
    journal, calls, earlier, tokens = _journal(judge, path), 0, 0, (0, 0)
    for pair in (pair for pair in pairs if isinstance(pair, Pair)):
        try:
            questions, size = questions_of(pair, judge.name, judge.parameters, asking), pair.size()
        except (ValueError, OSError):
            continue
        for question in questions:
            if journal.own(question.round):
                earlier += 1
            elif not journal.equal(question.round):
                journal.expect(replace(question.round, answer="VERDICT: A"))
                calls, new = calls + 1, asking.tokens(judge.parameters, size, question.view)
                tokens = tokens[0] + new[0], tokens[1] + new[1]
    return Plan(calls, earlier, tokens, None if asking.price is None else asking.price.of(tokens))


def _journal(judge: Judge, path: str | Path) -> Journal:
    return Journal(Path(path), shared=judge.parameters.get("temperature") == 0)


def judge_pairs(
    pairs: Sequence[Pair | Failed], judge: Judge, path: str | Path, asking: Asking | None = None
) -> Iterator[Sequence[Round | Failed]]:
    """Ask about every pair, and yield what came of each as it is done: its rounds, of earlier runs too.

    An answer is on the disk (`path`, a file of lines) before it counts, and a question that has a verdict there is not
    asked again. A pair that cannot be read is `Failed`, and the rest goes on. Where no question can be answered (wrong
    key or address, no money left, GIVE_UP failures in a row) the run ends, with one `Failed` about what was not asked.

    Raises:
        ValueError, OSError: the file holds other things, or cannot be written.
    """
    work = _Work(judge, _journal(judge, path), asking := asking or Asking())
    work.journal.keep(asking.settings(judge.parameters))
    yield from ([pair] for pair in pairs if isinstance(pair, Failed))
    pool = ThreadPoolExecutor(asking.concurrency)
    try:
        for done in as_completed([pool.submit(work.pair, pair) for pair in pairs if isinstance(pair, Pair)]):
            yield done.result()
    finally:
        work.stop.set()
        pool.shutdown(cancel_futures=True)  # answers that are under way are paid for, and kept
    if work.reason is not None:
        yield [Failed(judge.name, f"{work.reason}; {work.left} questions were not asked, the same command goes on")]


class _Work:
    """What the threads of a run share."""

    def __init__(self, judge: Judge, journal: Journal, asking: Asking) -> None:
        self.judge, self.journal, self.asking = judge, journal, asking
        self.stop, self.lock = threading.Event(), threading.Lock()
        self.reason: str | None = None
        self.left = self.failures = self.under_way = 0  # of these, calls
        costs = [each.cost for each in journal.rounds if each.judge == judge.name]
        self.spent, self.dearest = sum(costs), max(costs, default=0.0)  # USD, and USD a call

    def pair(self, pair: Pair) -> list[Round | Failed]:
        """Ask about one pair."""
        made, images = list[Round | Failed](), None
        try:
            for question in questions_of(pair, self.judge.name, self.judge.parameters, self.asking):
                if earlier := self.journal.own(question.round):
                    made.append(earlier)
                elif equal := self.journal.equal(question.round):
                    found = {"answer": equal.answer, "model": equal.model, "time": equal.time, "tries": 0}
                    made.append(self.journal.add(question.round, **found))
                elif self.stop.is_set():
                    with self.lock:
                        self.left += 1
                else:
                    images = images or pair.images()
                    made += self._asked(question, images)
        except (ValueError, OSError, MemoryError) as error:
            made.append(Failed(pair.title, reason_of(error)))
        return made

    def _asked(self, question: Question, images: Sequence[Image.Image]) -> list[Round]:
        """The answer, or nothing if there is no money left."""
        price, limit = self.asking.price or Price(0, 0), self.asking.max_cost
        estimate = price.of(self.asking.tokens(self.judge.parameters, images[0].size, question.view))
        with self.lock:
            self.dearest = max(self.dearest, estimate)
            if limit is not None and self.spent + (self.under_way + 1) * self.dearest > limit:
                self._end(f"another question may exceed the limit of {limit:g} USD, {self.spent:.4f} are spent")
                self.left += 1
                return []
            self.under_way += 1
        answer, cost = Answer(), estimate
        try:
            answer = self.judge.ask(self.asking.prompt, question.shown(images), self.stop.wait)
            unknown = answer.unknown + (answer.text is not None and answer.tokens is None)
            cost = price.of(answer.tokens or (0, 0)) + unknown * estimate
        finally:
            with self.lock:
                self.under_way -= 1
                self.spent, self.dearest = self.spent + cost, max(self.dearest, cost)
                self.failures = self.failures + 1 if answer.down else 0
                if answer.hopeless or self.failures >= GIVE_UP:
                    self._end(f"{answer.error}")
        about = {"answer": answer.text, "error": answer.error, "model": answer.model, "tries": answer.tries}
        return [self.journal.add(question.round, **about, tokens=answer.tokens or (0, 0), cost=cost)]

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.stop.set()
