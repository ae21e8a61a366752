"""pixdec judge: folders in, a table out; bad input is one line, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixdec.evaluate.judge.endpoint import Answer

Run = Callable[..., Any]
Photo = Callable[..., Path]
Names = Callable[[Path], list[str]]


@pytest.fixture
def folders(photo: Photo, tmp_path: Path) -> tuple[Path, Path]:
    for name, seed in (("a", 0), ("b", 1)):
        photo(tmp_path / "ours" / f"{name}.png", seed=seed)
        photo(tmp_path / "theirs" / f"{name}.png", seed=seed + 2)
    return tmp_path / "ours", tmp_path / "theirs"


def test_a_table(run: Run, folders: tuple[Path, Path], names: Names, tmp_path: Path) -> None:
    arguments = ("judge", *folders, "-o", tmp_path / "out", "--model", "fake", "--controls")
    outcome = run(*arguments)
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.count("| fake |") == 3
    settings, *rest = names(tmp_path / "out")
    assert (settings[:6], rest) == ("judge-", ["judge.json", "judge.jsonl", "judge.md"])
    assert (tmp_path / "out" / "judge.md").read_text() == outcome.out
    again = run("judge", "-o", tmp_path / "out")  # only counted
    assert (again.code, again.out) == (0, outcome.out)


def test_lines_for_machines(run: Run, folders: tuple[Path, Path], tmp_path: Path) -> None:
    outcome = run("judge", *folders, "-o", tmp_path / "out", "--model", "fake", "--json")
    *rounds, summary = outcome.records
    assert {(each["pair"], each["ours_first"]) for each in rounds} == {(p, o) for p in "ab" for o in (True, False)}
    assert summary == json.loads((tmp_path / "out" / "judge.json").read_text())


def test_a_dry_run_calls_nobody(run: Run, folders: tuple[Path, Path], names: Names, tmp_path: Path) -> None:
    arguments = ("judge", *folders, "-o", tmp_path / "out", "--endpoint", "http://127.0.0.1:1/v1", "--model", "m")
    outcome = run(*arguments, "--dry-run", "--price", 2, 10)
    assert outcome.code == 0
    assert outcome.out.startswith("4 calls, 0 made earlier; ")
    assert "USD" in outcome.out
    assert not (tmp_path / "out").exists()
    plan = run(*arguments, "--dry-run", "--json").records[0]
    assert (plan["calls"], plan["cost"]) == (4, None)


def test_the_key_comes_out_of_the_environment(
    run: Run, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[Any]()

    def call(self: Any, request: Any) -> Any:
        seen.append(request.get_header("Authorization"))
        return Answer("VERDICT: A")

    monkeypatch.setattr("pixdec.evaluate.judge.endpoint.Endpoint._call", call)
    monkeypatch.setenv("MY_KEY", "secret-key\n")
    arguments = ("judge", *folders, "-o", tmp_path / "out", "--endpoint", "http://127.0.0.1:1/v1", "--model", "m")
    outcome = run(*arguments, "--key-env", "MY_KEY", "--json")
    assert seen == ["Bearer secret-key"] * 4
    written = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
    assert "secret-key" not in outcome.out + outcome.err + written


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ["--model"]),
        (("--model", "m"), ["--endpoint"]),
        (("--model", "fake", "--human", "anna"), ["--model fake", "--human"]),
        (("--model", "m", "--endpoint", "nowhere"), ["nowhere", "http://"]),
        (("--model", "m", "--endpoint", "http://x/v1", "--body", "[1]"), ["--body", "JSON"]),
        (("--model", "fake", "--max-cost", "1"), ["--max-cost", "price"]),
        (("--model", "fake", "--prompt", "missing.txt"), ["missing.txt"]),
        (("--model", "fake", "--crops", "-1"), ["--crops -1"]),
        (("--model", "fake", "--concurrency", "0"), ["--concurrency 0"]),
        (("--human", "anna", "--dry-run"), ["--dry-run"]),
    ],
)
def test_refused(
    run: Run, folders: tuple[Path, Path], tmp_path: Path, arguments: tuple[str, ...], words: list[str]
) -> None:
    run("judge", *folders, "-o", tmp_path / "out", *arguments).refused(*words)
    assert not (tmp_path / "out").exists()


def test_one_line_for_each_failure_and_the_rest_goes_on(
    run: Run, folders: tuple[Path, Path], photo: Photo, tmp_path: Path
) -> None:
    photo(folders[1] / "a.png", 48, 16)
    outcome = run("judge", *folders, "-o", tmp_path / "out", "--model", "fake")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "pixdec: a  ours | theirs: 32x16 and 48x16" in outcome.err
    assert "| fake | ours, theirs | whole 1024 | 1 | 2 | 0 |" in outcome.out
