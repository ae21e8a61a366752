"""The shipped list, likeness, and a language model that writes prompts, with all that an endpoint may answer."""

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any
from zlib import crc32

import pytest

from pixdec.cli import main
from pixdec.evaluate.judge.endpoint import Endpoint
from pixdec.generation.prompts import read_prompts
from pixdec.l2p.prompt_lists import TOPICS, Alike, shipped, write_prompts

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluate" / "judge"))

from judge_stub import Stub, said, serving


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as stub:
        yield stub


def test_the_shipped_list_is_spread_over_topics_and_languages_and_no_two_are_alike():
    prompts = shipped()
    assert len(prompts) == 1000
    assert len({each.prompt for each in prompts}) == len({each.name for each in prompts}) == 1000
    counts = Counter((each.topic, each.name[:2]) for each in prompts)
    assert set(counts) == {(topic, language) for topic in TOPICS for language in ("en", "zh")}
    assert min(counts.values()) >= 25
    alike = Alike()
    assert all(alike.find(each.prompt) is None for each in prompts)
    for each in prompts:
        assert ("zh" in each.name) == bool(re.search("[\u4e00-\u9fff]{6}", each.prompt)), each
        assert "  " not in each.prompt and "{" not in each.prompt


def test_what_is_alike():
    alike = Alike()
    text = "A red fox with a winter coat stands among tall reeds, and its breath shows in the cold air."
    assert alike.find(text) is None
    assert alike.find(text.upper().replace(",", " ")) == text
    assert alike.find(text.replace("red", "gray")) == text
    assert alike.find("A heron flies over a lake at dawn while the mist is lifting from the water.") is None


class Model:
    """Answers each of the three questions; `spoil` changes the n-th answer."""

    def __init__(self, spoil: dict[int, Any] | None = None) -> None:
        self.spoil, self.calls, self.made = spoil or {}, 0, 0

    def __call__(self, body: dict[str, Any]) -> Any:
        self.calls += 1
        if self.calls in self.spoil:
            return self.spoil[self.calls]
        ask = body["messages"][0]["content"][0]["text"]
        if ask.startswith("List"):
            count = int(re.search(r"List (\d+)", ask)[1])
            self.made += count
            return said(json.dumps([f"subject {self.made - i} {crc32(ask.encode()) % 997}" for i in range(count)]))
        listed = json.loads(re.search(r"(\[.*?\])\n", ask)[1])
        if ask.startswith("Write"):
            return said(
                "Here they are:\n"
                + json.dumps([f"“{each}” {each[::-1]} — {''.join(sorted(each * 3))} {each * 2}" for each in listed])
            )
        return said(
            json.dumps([{"is_valid": not re.match(r"“subject \d*7 ", each), "reason": "a seven"} for each in listed])
        )


def asked(stub: Stub, model: Model) -> Endpoint:
    stub.reply = lambda _: model(stub.calls[-1])
    return Endpoint(stub.url, "m", tries=3)


def test_a_list_is_written_judged_and_goes_on(stub: Stub, tmp_path: Path):
    path, model = tmp_path / "list.jsonl", Model({11: (200, {}, b"<html>no</html>")})
    with pytest.raises(ValueError, match="HTML"):
        list(write_prompts(path, 34, asked(stub, model), lambda _: False))
    first = path.read_text().splitlines()
    assert first
    last = list(write_prompts(path, 34, asked(stub, model), lambda _: False))[-1]
    lines = path.read_text().splitlines()
    assert lines[: len(first)] == first
    assert len(lines) == last.done == 34
    assert last.left_out.get("refused: a seven", 0) > 0
    counts = Counter(each.topic for each in read_prompts(path))
    assert set(counts) == set(TOPICS) and set(counts.values()) == {2}
    calls = model.calls
    assert list(write_prompts(path, 34, asked(stub, model), lambda _: False))[-1].done == 34
    assert model.calls == calls  # nothing was left to ask


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ((429, {"Retry-After": "0"}, b"{}"), "429"),
        ((500, {}, b"oh"), "500"),
        ((200, {}, b"<!doctype html><p>hello"), "HTML"),
        ((200, {}, b'{"choices": [{"mess'), "not JSON"),
        (said('["a subject", "half'), "no JSON list"),
        (said('[{"no": "text"}]'), "expected some, each a str"),
    ],
)
def test_an_endpoint_that_does_not_answer_well(stub: Stub, tmp_path: Path, answer: Any, told: str, capsys):
    stub.reply = lambda _: answer
    stub.release.set()
    path = tmp_path / "list.jsonl"
    with pytest.raises(ValueError, match=told):
        list(write_prompts(path, 2, Endpoint(stub.url, "m", tries=2), lambda _: False))
    assert not path.exists()


def test_one_bad_answer_is_asked_again(stub: Stub, tmp_path: Path):
    spoil = {1: (429, {"Retry-After": "0"}, b"{}"), 3: said('["half'), 5: (503, {"Retry-After": "0"}, b"")}
    model = Model(spoil)
    done = list(write_prompts(tmp_path / "list.jsonl", 17, asked(stub, model), Event().wait, ["en"]))[-1]
    assert done.done == 17


def test_the_command_writes_the_shipped_list_and_names_what_is_wrong(tmp_path: Path, capsys):
    path = tmp_path / "list.jsonl"
    assert main(["l2p", "prompts", "-o", str(path), "--language", "zh", "--count", "40"]) == 0
    assert [each.name[:2] for each in read_prompts(path)] == ["zh"] * 40
    assert main(["l2p", "prompts", "-o", str(tmp_path / "list.txt")]) == 2
    line = ["l2p", "prompts", "-o", str(tmp_path / "x.jsonl"), "--endpoint", "http://127.0.0.1:9/v1", "--count", "1"]
    assert main([*line, "--count", "0"]) == 2
    path.write_text('{"no": 1}\n')
    assert main(["l2p", "prompts", "-o", str(path), "--endpoint", "http://127.0.0.1:9/v1"]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 3
    assert "line 1" in told[-1]
