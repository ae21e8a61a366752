"""Latents of a real, tiny FLUX.2 klein pipeline at several stops, decoded by each method."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "cli"))

from klein_pipeline import klein, one_process, written

from pixdec.cli import main
from pixdec.evaluate.generated import prompts_in, stops_of
from pixdec.latents import get_space

__all__ = ["klein", "one_process"]

FEW = ["--generator-steps", "4", "--height", "32", "--width", "48", "--guidance", "1", "--device", "cpu"]


def test_quality_over_the_stops(klein: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, out = written(tmp_path / "prompts.txt", "a fox", "a boat", "a hill"), tmp_path / "out"
    command = ["eval", "pixdec-nano:1", "tiny+lanczos", "--pipeline", str(klein), "--prompts", str(prompts)]
    command += ["--stops", "2,4", "-o", str(out), "--metrics", "pattern,psnr", "--images", "--json", *FEW]
    assert main(command) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert "no boats" in line
    rows = [json.loads(each) for each in said.out.splitlines()]
    methods = [(row["input"][:5], row["method"]) for row in rows if "method" in row]
    expected = ["pixdec-nano:1 @2", "pixdec-nano:1 @4", "tiny+lanczos @4"]  # which takes no noise
    assert methods == [(name, method) for name in ("00000", "00002") for method in expected]
    means = json.loads((out / "summary.json").read_text())["methods"]
    assert means["pixdec-nano:1 @2"]["means"]["pattern"]["n"] == 2
    assert "psnr" not in means["pixdec-nano:1 @2"]["means"]  # there is nothing to compare with
    assert means["pixdec-nano:1 @2"]["figures"] != means["pixdec-nano:1 @4"]["figures"]
    assert "over the step of the stop" in (out / "report.html").read_text()
    assert len(list((out / "images").rglob("*.png"))) == 6
    stamps = {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}
    assert len(stamps) == 8  # of each stop the latent, and the image for a decoder of images
    assert main(command) == 2
    again = [json.loads(each) for each in capsys.readouterr().out.splitlines()]
    assert all(row["earlier"] for row in again if "method" in row)
    assert stamps == {path: path.stat().st_mtime_ns for path in (out / "latents").iterdir()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stops", "2,9"], "--stops 2,9: expected steps from 1 to 4"),
        (["--stops", "early"], "expected steps separated by commas"),
        (["--width", "49"], "width 49"),
        (["--prompts", "nowhere.txt"], "nowhere.txt: there is no such file"),
    ],
)
def test_what_is_refused(
    klein: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    prompts = written(tmp_path / "prompts.txt", "a fox")
    command = ["eval", "pixdec-nano", "--pipeline", str(klein), "--prompts", str(prompts), *FEW]
    assert main([*command, *arguments, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err


def test_prompts_of_dpg_bench(tmp_path: Path) -> None:
    for name, text in (("midjourney12", "A red\nfox. "), ("COCOval7", "Two hills."), ("empty", " ")):
        (tmp_path / f"{name}.txt").write_text(text)
    assert [(each.name, each.text) for each in prompts_in(tmp_path)] == [
        ("COCOval7", "Two hills."),
        ("midjourney12", "A red fox."),
    ]
    with pytest.raises(ValueError, match="there is no prompt"):
        prompts_in(_empty(tmp_path))


def _empty(path: Path) -> Path:
    (path / "none").mkdir()
    return path / "none"


def test_stops() -> None:
    assert stops_of("28,24", get_space("flux1"), 28) == [24, 28]
    assert stops_of("auto", get_space("flux1"), 28) == [24, 28]
    assert stops_of("auto", get_space("flux1"), 4) == [4]
    with pytest.raises(ValueError, match="generator_steps"):
        stops_of("auto", get_space("flux1"), None)
