"""Prompts for a source to make its images of: a shipped list, and more of them by a language model.

The taxonomy is the paper's (arXiv 2605.12013, appendix). A language model widens each of its topics to subjects, writes
a prompt for each, and is asked once more which of them to keep; what is like an earlier one is left out.

A list has a line of JSON for each prompt: {"name", "topic", "prompt"}, which `pixdec l2p synthesise` and
`pixdec l2p generate --prompts` read.
"""

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from pixdec.io.files import prepare
from pixdec.io.json_lines import append_line, read_lines

TAXONOMY = {
    "nature": ("objects", "cityscape", "food", "plants", "indoor", "landscape", "animals"),
    "design": ("arts", "posters", "slides", "cartoon", "UI"),
    "people": ("portrait", "sports", "activities"),
    "text": ("Chinese", "English"),
}
TOPICS = tuple(f"{name}/{part}" for name, parts in TAXONOMY.items() for part in parts)
LANGUAGES = {"en": "English", "zh": "Chinese"}
_DRAWN = ("design/posters", "design/slides", "design/UI", "text/Chinese", "text/English")  # must have text to draw
_HINTS = {
    "nature/objects": "name the material", "nature/cityscape": "name the time of day",
    "nature/plants": "name the species", "nature/animals": "name the species", "design/arts": "name the medium",
    "people/activities": "say how the person handles the tools",
}  # fmt: skip
_RULES = """Write fluent sentences in {language}, no lists of tags. Vary viewpoint, light, style, the first words and
the form of the sentences. Make half of the prompts simple, of one sentence, and half detailed, of three to five; most
have 200 to 350 characters. {extra}Nothing sexual, violent or political, no brands and no protected characters. Answer
with JSON alone, without a word before or after it."""
_SUBJECTS = """List {count} different subjects for pictures of the kind "{topic}", each of a few words in {language}.
Answer with a JSON list of strings alone. Leave out these: {known}"""
_WRITE = """Write one prompt for a text-to-image model for each of these subjects of the kind "{topic}": {subjects}
{rules} The answer is a JSON list of {count} strings, in the order of the subjects."""
_FILTER = """Judge these prompts for a text-to-image model. One is valid if it consists of sentences, not of tags; if
any text to be drawn stands in quotes; if it has nothing sexual, violent or political; and if it names no brand and no
protected character. Prompts: {prompts}
Answer with a JSON list of {count} objects, in this order: {{"is_valid": true or false, "reason": a few words}}."""
_SHINGLE, _HASHES, _BANDS, _ALIKE = 4, 64, 32, 0.6
_ATTEMPTS = 3  # at an answer that is no JSON of the form asked for
_BATCH = 10  # prompts of a call
_QUOTES = re.compile("[\"“「『《'‘].+[\"”」』》'’]")


class Reply(Protocol):
    """What came of a question: the answer, or why there is none; `hopeless`: the next will fail alike."""

    @property
    def text(self) -> str | None: ...
    @property
    def error(self) -> str | None: ...
    @property
    def hopeless(self) -> bool: ...


class Writer(Protocol):
    """A language model, such as `pixdec.evaluate.judge.endpoint.Endpoint`."""

    def ask(self, prompt: str, images: Sequence[Any], wait: Callable[[float], bool]) -> Reply: ...


@dataclass(frozen=True)
class Written:
    """One prompt of a list."""

    name: str
    topic: str
    prompt: str

    def line(self) -> str:
        return json.dumps({"name": self.name, "topic": self.topic, "prompt": self.prompt}, ensure_ascii=False)


def shipped() -> list[Written]:
    """1000 prompts of our own, of all topics, in English and Chinese."""
    lines = files("pixdec.l2p").joinpath("prompts.jsonl").read_text("utf-8").splitlines()
    return [Written(**json.loads(line)) for line in lines]


class Alike:
    """Which texts are nearly one another: at least 0.6 of all runs of four characters are common, as far as 64 hashes
    find the candidates. Case, spaces and punctuation do not count."""

    def __init__(self) -> None:
        self._grams: list[frozenset[str]] = []
        self._texts: list[str] = []
        self._bands: dict[tuple[int, bytes], list[int]] = {}
        draw = np.random.default_rng(0)
        self._factors = draw.integers(1, 2**31, (_HASHES, 1), dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offsets = draw.integers(0, 2**62, (_HASHES, 1), dtype=np.uint64)

    def find(self, text: str) -> str | None:
        """An earlier text that this is like; if there is none, it is kept."""
        plain = "".join(character for character in text.casefold() if character.isalnum())
        grams = frozenset(plain[i : i + _SHINGLE] for i in range(max(1, len(plain) - _SHINGLE + 1)))
        hashes = np.array([zlib.crc32(gram.encode()) for gram in grams], dtype=np.uint64)
        signature = ((hashes * self._factors + self._offsets) >> np.uint64(20)).min(1)
        bands = [(i, part.tobytes()) for i, part in enumerate(np.split(signature, _BANDS))]
        for other in {place for band in bands for place in self._bands.get(band, ())}:
            if len(grams & self._grams[other]) >= _ALIKE * len(grams | self._grams[other]):
                return self._texts[other]
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._texts))
        self._texts.append(text)
        self._grams.append(grams)
        return None


@dataclass(frozen=True)
class Progress:
    """How many prompts a list has, of how many, and how many were left out, by reason."""

    done: int
    total: int
    left_out: dict[str, int] = field(default_factory=dict[str, int])


def write_prompts(
    output: str | Path,
    count: int,
    writer: Writer,
    wait: Callable[[float], bool],
    languages: Sequence[str] = ("en", "zh"),
) -> Iterator[Progress]:
    """Adds prompts to a list, spread evenly over topics and languages, until it has `count`; yields after every call.

    Beside the list NAME.jsonl lies NAME.subjects.jsonl, of the subjects that were asked for and what became of each.
    Both grow line by line: a run that ended goes on when it is called again.

    Raises:
        ValueError: no usable answer came, to the last try; or a file holds something else.
        OSError: a file cannot be written.
    """
    path = Path(output)
    prepare([path])
    state, ask = _State(path), _Ask(writer, wait)
    ways = [(topic, language) for topic in TOPICS for language in languages]
    shares = {way: count // len(ways) + (i < count % len(ways)) for i, way in enumerate(ways)}
    for (topic, language), share in shares.items():
        rounds = 0
        while (missing := share - state.count(topic, language)) > 0:
            rounds += 1
            if rounds > 2 * _ATTEMPTS + share // _BATCH:
                raise ValueError(
                    f"{output}: {missing} of {share} prompts of {topic} in {LANGUAGES[language]} are missing, and what "
                    "the model writes is left out again and again; see the reasons in "
                    f"{state.subjects_path.name}"
                )
            _write_some(state, topic, language, min(missing, _BATCH), ask)
            yield Progress(len(state.prompts), count, dict(state.left_out))
    yield Progress(len(state.prompts), count, dict(state.left_out))


class _State:
    """What the two files hold."""

    def __init__(self, path: Path) -> None:
        self.path, self.subjects_path = path, path.with_suffix(".subjects.jsonl")
        self.alike, self.left_out = Alike(), dict[str, int]()
        self.prompts = read_lines(path, lambda line: Written(**line), "is no prompt that was written here")
        self.subjects = read_lines(self.subjects_path, dict[str, str], "is no subject that was asked for here")
        for written in self.prompts:
            self.alike.find(written.prompt)
        for each in self.subjects:
            self._count_out(each["became"])

    def _count_out(self, became: str) -> None:
        if became != "written":
            self.left_out[became] = self.left_out.get(became, 0) + 1

    def count(self, topic: str, language: str) -> int:
        return sum(each.topic == topic and each.name.startswith(f"{language}-") for each in self.prompts)

    def known(self, topic: str, language: str) -> list[str]:
        return [each["subject"] for each in self.subjects if (each["topic"], each["language"]) == (topic, language)]

    def add(self, topic: str, language: str, subject: str, prompt: str, reason: str) -> None:
        """Keeps a prompt that has no `reason` to be left out; either way its subject is done."""
        became = reason or ("alike" if self.alike.find(prompt) else "written")
        if became == "written":
            written = Written(f"{language}-{len(self.prompts):06}", topic, prompt)
            append_line(self.path, written.line())
            self.prompts.append(written)
        self._count_out(became)
        self.subjects.append({"topic": topic, "language": language, "subject": subject, "became": became})
        append_line(self.subjects_path, json.dumps(self.subjects[-1], ensure_ascii=False))


@dataclass(frozen=True)
class _Ask:
    """Questions that are answered by a JSON list."""

    writer: Writer
    wait: Callable[[float], bool]

    def __call__(self, question: str, kind: type, count: int | None) -> list[Any]:
        """The list in the answer, of `count` values of a kind.

        Raises:
            ValueError: there is none to the last try, or no answer.
        """
        problem = ""
        for _ in range(_ATTEMPTS):
            reply = self.writer.ask(question, (), self.wait)
            if reply.text is None:
                raise ValueError(
                    f"the endpoint gave no answer: {reply.error}; the same command goes on where this stopped"
                )
            text = reply.text.rpartition("</think>")[2]
            try:
                found = json.loads(text[text.index("[") : text.rindex("]") + 1])
            except ValueError:
                problem = f"no JSON list in {' '.join(text.split())[:60]!r}"
                continue
            if all(isinstance(each, kind) for each in found) and (count is None or len(found) == count):
                return found
            problem = f"a list of {len(found)} values; expected {count or 'some'}, each a {kind.__name__}"
        raise ValueError(
            f"the endpoint's answers cannot be used: {problem}; the same command goes on where this stopped"
        )


def _write_some(state: _State, topic: str, language: str, count: int, ask: _Ask) -> None:
    known, tongue = state.known(topic, language), LANGUAGES[language]
    question = _SUBJECTS.format(
        count=count, topic=topic, language=tongue, known=json.dumps(known[-200:], ensure_ascii=False)
    )
    subjects = [each for each in ask(question, str, None) if each not in known][:count]
    if not subjects:
        return
    extra = f"{_HINTS[topic].capitalize()}. " if topic in _HINTS else ""
    if topic in _DRAWN:
        drawn = f"in {topic.removeprefix('text/')}, " if topic.startswith("text/") else ""
        extra += f"Each has text to be drawn, {drawn}in quotes. "
    rules, said = _RULES.format(language=tongue, extra=extra), json.dumps(subjects, ensure_ascii=False)
    question = _WRITE.format(topic=topic, subjects=said, rules=rules, count=len(subjects))
    prompts = ask(question, str, len(subjects))
    question = _FILTER.format(prompts=json.dumps(prompts, ensure_ascii=False), count=len(prompts))
    verdicts = ask(question, dict, len(prompts))
    for subject, prompt, verdict in zip(subjects, prompts, verdicts, strict=True):
        reason = "" if verdict.get("is_valid") is True else f"refused: {verdict.get('reason', 'no reason')}"
        if not reason and topic in _DRAWN and not _QUOTES.search(prompt):
            reason = "no text to draw"
        state.add(topic, language, subject, " ".join(prompt.split()), reason)
