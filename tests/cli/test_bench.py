"""pixdec bench: rows of real processes in, a folder of figures out; bad options are one line, exit code 2."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pixdec.cli import _parse  # pyright: ignore[reportPrivateUsage]

Run = Callable[..., Any]
Names = Callable[[Path], list[str]]

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("--sides", 64, "--device", "cpu", "--runs", 1, "--warmup", 1)


def test_a_folder_of_figures(run: Run, bundled: Path, names: Names, tmp_path: Path) -> None:
    """The tiny stand-in for the bundled decoder, by its file; with a method that must fail."""
    pytest.importorskip("matplotlib")
    damaged, out = tmp_path / "damaged.pth", tmp_path / "out"
    damaged.write_bytes(b"no model")
    arguments = (
        "bench", "--model", bundled / "pixdec-nano.safetensors", *QUICK, "--ours", "eager", "--beside", "lanczos",
        f"spandrel:{damaged}", "-o", out,
    )  # fmt: skip
    outcome = run(*arguments, "--json")
    assert outcome.code == 0, outcome.err
    eager, lanczos, foreign, last = outcome.records
    assert (eager["method"], eager["side"], eager["status"]) == ("eager", 64, "ok")
    assert lanczos["status"] == "ok" and foreign["status"] == "failed"
    assert last == {"output": str(out / "bench.md"), "rows": 3, "measured": 2}
    assert names(out) == ["bench.json", "bench.md", "bench.webp"]
    page = (out / "bench.md").read_text()
    assert page.startswith("# `pixdec bench`: pixdec-nano on ")
    assert "| eager | " in page and f"- spandrel:{damaged}, 64²: failed: " in page
    command = json.loads((out / "bench.json").read_text())["commands"][0]
    assert _parse(shlex.split(command)[1:]) == _parse([str(argument) for argument in arguments])

    again = run(*arguments)
    assert (again.code, again.out, again.err) == (0, "", "")
    other = run(*arguments, "--runs", 2)
    other.refused("bench.json", "runs 1, this is 2")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--sides", 100), ("--sides 100", "64")),
        (("--beside", "vae:flux9"), ("--beside vae:flux9", "vae:flux1")),
        (("--beside", "spandrel:nothing.pth"), ("nothing.pth", "no file")),
        (("--ours", "quick"), ("--ours", "quick")),
        (("--runs", 0), ("--runs 0",)),
        (("--limit", -1), ("--limit -1",)),
        (("--ours", "--beside"), ("nothing to measure",)),
    ],
)
def test_bad_options(run: Run, tmp_path: Path, options: tuple[object, ...], words: tuple[str, ...]) -> None:
    run("bench", "-o", tmp_path / "out", *options).refused(*words)
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there(run: Run, tmp_path: Path) -> None:
    run("bench", *QUICK, "--model", "nothing.safetensors", "-o", tmp_path / "out").refused("--model", "nothing")


def test_an_output_that_is_a_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    run("bench", *QUICK, "-o", tmp_path / "out").refused("out")


def test_the_page_s_program(tmp_path: Path) -> None:
    """In a process of its own, as `python` is, in another folder; child processes find the package all the same."""
    script = (ROOT / "docs" / "bench.md").read_text().partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("eager  64x64  ") and lines[-1].startswith("eager  64x64  ")
    assert (tmp_path / "runs" / "bench-python" / "bench.json").exists()
