"""pixdec eval: methods and photographs in, a folder of figures out; bad input is one line, exit code 2."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pixdec.evaluate.metrics.fidelity import psnr
from pixdec.evaluate.metrics.table import OWN
from pixdec.io.images import read_image, to_pil, to_tensor
from pixdec.models.taef2 import TAEF2
from pixdec.train.data.degrade import degrade

Run = Callable[..., Any]
Photo = Callable[..., Path]
Names = Callable[[Path], list[str]]

QUICK = ("--metrics", "psnr,consistency")


@pytest.fixture
def photos(photo: Photo, tmp_path: Path) -> Path:
    photo(tmp_path / "photos" / "a.png", 192, 128)
    photo(tmp_path / "photos" / "b.png", 70, 64, seed=1)
    return tmp_path / "photos"


def test_a_folder_of_figures(run: Run, photo: Photo, names: Names, tmp_path: Path) -> None:
    photo(tmp_path / "photos" / "a.png", 192, 128)
    methods = ("pixdec-nano", "pixdec-nano:1", "tiny+lanczos")
    arguments = ("eval", *methods, tmp_path / "photos", "-o", tmp_path / "out", *QUICK, "--images")
    outcome = run(*arguments)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    files = [name for name in names(tmp_path / "out") if not name.startswith(("crops/", "images/"))]
    assert files == ["report.html", "results.jsonl", "sheets/a.webp", "summary.json", "table.md"]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["facts"]["command"] == shlex.join(map(str, ("pixdec", *arguments)))
    assert list(summary["methods"]) == list(methods)
    assert len({each["means"]["psnr"]["mean"] for each in summary["methods"].values()}) == 3
    assert (tmp_path / "out" / "table.md").read_text().startswith("# 4 times larger: photos\n")
    assert "pixdec-nano:1" in (tmp_path / "out" / "report.html").read_text()


def test_two_runs_are_compared(run: Run, photos: Path, tmp_path: Path) -> None:
    for name, method in (("one", "tiny+lanczos"), ("two", "tiny+bicubic")):
        assert run("eval", method, photos, "-o", tmp_path / name, *QUICK).code == 0
    outcome = run("eval", "--compare", tmp_path / "one", tmp_path / "two", "--json")
    (difference,) = outcome.records[0]["differences"].values()
    assert (outcome.code, difference["psnr"]["n"]) == (0, 2)
    assert "| method | n | PSNR dB ↑ |" in run("eval", "--compare", tmp_path / "one", tmp_path / "two").out
    run("eval", "--compare", tmp_path / "one", tmp_path / "none").refused("none", "expected the folder of a run")


def test_what_is_not_installed_is_a_line_and_the_rest_goes_on(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    outcome = run("eval", "bicubic", "lua", photos, "-o", tmp_path / "out", "--metrics", "psnr,pyiqa:niqe")
    assert outcome.code == 2
    assert [
        "pyiqa is not installed" in line or "lua: it enlarges latents" in line for line in outcome.err.splitlines()[:2]
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert list(summary["missing"]) == ["lua"]
    assert list(summary["absent"]) == ["pyiqa:niqe"]
    assert summary["methods"]["bicubic"]["means"]["psnr"]["n"] == 2


def test_without_the_extra_the_first_line_says_so(run: Run, photos: Path, tmp_path: Path, monkeypatch: Any) -> None:
    command = ("eval", "pixdec-nano:1", photos, "-o", tmp_path / "out", "--metrics", "psnr,color_drift")
    monkeypatch.setitem(sys.modules, "skimage", None)  # one metric is told of, the others are measured
    outcome = run(*command, "--json")
    assert (outcome.code, "color drift needs skimage: pip install 'pixdec[evaluate]'" in outcome.err) == (2, True)
    assert '"psnr"' in outcome.out
    monkeypatch.setitem(sys.modules, "scipy", None)
    run(*command).refused("pixdec eval needs scipy: pip install 'pixdec[evaluate]'")


def test_lines_for_machines_and_the_second_run(run: Run, photos: Path, tmp_path: Path) -> None:
    arguments = ("eval", "pixdec-nano:1", "bicubic", photos, "-o", tmp_path / "out", *QUICK, "--json")
    first = run(*arguments)
    assert first.code == 0
    assert first.err == ("pixdec: note: cropped 1 of 2 images, in the middle, to sides that are multiples of 64\n")
    *rows, last = first.records
    assert [(row["input"], row["method"], row["cropped"]) for row in rows] == [
        ("a.png", "pixdec-nano:1", False),
        ("a.png", "bicubic", False),
        ("b.png", "pixdec-nano:1", True),
        ("b.png", "bicubic", True),
    ]
    assert list(rows[0]["figures"]) == ["psnr", "consistency", "seconds"]
    assert (last["output"], last["images"]) == (str(tmp_path / "out" / "report.html"), 2)
    assert set(last["means"]) == {"pixdec-nano:1", "bicubic"}
    second = run(*arguments)
    assert [row["earlier"] for row in first.records[:-1]] == [False] * 4
    assert [row["earlier"] for row in second.records[:-1]] == [True] * 4
    assert [row["figures"] for row in second.records[:-1]] == [row["figures"] for row in rows]
    assert second.records[-1] == last


def test_what_is_measured_is_what_upscale_makes(run: Run, photo: Photo, tmp_path: Path) -> None:
    original = read_image(photo(tmp_path / "photos" / "a.png", 128, 64))
    low = to_pil(degrade(to_tensor(original), 4))[0]
    low.save(tmp_path / "low.png")
    assert run("upscale", tmp_path / "low.png", "-o", tmp_path / "up.png", "--strength", 0.3, "--seed", 5).code == 0
    outcome = run(
        "eval",
        "pixdec-nano",
        tmp_path / "photos",
        "-o",
        tmp_path / "out",
        "--sigma",
        0.3,
        "--seed",
        5,
        *QUICK,
        "--json",
    )
    assert outcome.records[0]["figures"]["psnr"] == psnr(read_image(tmp_path / "up.png"), original)


def test_a_bad_image_among_good_ones(run: Run, photos: Path, names: Names, tmp_path: Path) -> None:
    (photos / "c.png").write_bytes((photos / "a.png").read_bytes()[:-200])
    Image.new("RGB", (30, 400)).save(photos / "d.png")
    outcome = run("eval", "lanczos", photos, "-o", tmp_path / "out", *QUICK, "--json", "--sheets", 0)
    assert outcome.code == 2
    assert [line.partition(": ")[0] for line in outcome.err.splitlines()] == ["pixdec"] * 3
    assert [Path(str(each["input"])).name for each in outcome.records if "error" in each] == ["c.png", "d.png"]
    assert "sheets" not in {name.split("/")[0] for name in names(tmp_path / "out")}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["images"] == ["a.png", "b.png"]
    assert [summary["methods"]["lanczos"]["means"]["psnr"][count] for count in ("n", "failed")] == [2, 2]


def test_nothing_but_bad_images(run: Run, names: Names, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_text("no image")
    outcome = run("eval", "lanczos", tmp_path / "photos", "-o", tmp_path / "out")
    assert outcome.code == 2
    assert [word in outcome.err for word in ("not an image", "none of 1 images has figures")] == [True, True]
    assert names(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pixdec-nano",), ["at least one METHOD and then DATA"]),
        (("pixdec-nano", "nowhere"), ["nowhere", "no such file or folder"]),
        (("pixdec-mano", "."), ["pixdec-mano", "pixdec-nano"]),
        (("pixdec-nano:0", "."), ["pixdec-nano:0", "at least 1 step"]),
        (("bicubic", "bicubic", "."), ["'bicubic'", "named twice"]),
        (("bicubic", ".", "--metrics", "psnr,lpips"), ["'lpips'", "pyiqa:NAME"]),
        (("bicubic", ".", "--metrics", ""), ["metric ''"]),
        (("bicubic", ".", "--sigma", "1.2"), ["sigma 1.2"]),
        (("bicubic", ".", "--encoder", "vae"), ["autoencoder 'vae'"]),
        (("bicubic", ".", "--space", "flux9"), ["flux9"]),
        (("bicubic", ".", "--space", "sdxl"), ["no bundled encoder for sdxl"]),
        (("bicubic", ".", "--device", "abacus"), ["abacus"]),
        (("bicubic", ".", "--sheets", "many"), ["many"]),
    ],
)
def test_bad_arguments(
    run: Run,
    photos: Path,
    names: Names,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    monkeypatch.chdir(photos)
    run("eval", *arguments, "-o", tmp_path / "out").refused(*words)
    assert not (tmp_path / "out").exists() or names(tmp_path / "out") == []


def test_outputs_that_cannot_be_written(run: Run, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run("eval", "bicubic", photos, "-o", tmp_path / "file").refused("file")
    run("eval", "bicubic", photos, "-o", photos).refused("would lie among the photographs")
    (tmp_path / "taken" / "table.md").mkdir(parents=True)
    run("eval", "bicubic", photos, "-o", tmp_path / "taken").refused("table.md", "it is a folder")


def test_on_a_terminal_the_table_is_shown(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    outcome = run("eval", "bicubic", photos, "-o", tmp_path / "out", *QUICK)
    assert outcome.code == 0
    assert "a.png  bicubic  psnr " in outcome.out
    assert "| method | n | PSNR dB ↑ | consistency dB ↑ | seconds ↓ |" in outcome.out
    assert f"{tmp_path / 'out' / 'report.html'}  2 images" in outcome.out


def test_the_commands_and_the_script_of_the_page(run: Run, photo: Photo, tmp_path: Path, monkeypatch: Any) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "eval.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("    pixdec eval ") and "../shared" in line]
    commands = [shlex.split(line) for line in lines]
    assert len(commands) == 2
    monkeypatch.delitem(OWN, "niqe")  # random weights make flat images, which it refuses
    (tmp_path / "shared" / "kodak").mkdir(parents=True)
    noise = torch.randint(0, 255, (128, 192, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).save(tmp_path / "shared" / "kodak" / "a.png")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    torch.manual_seed(0)
    weights = tmp_path / "shared" / "weights" / "taef2"
    weights.mkdir(parents=True)
    teacher = TAEF2()
    torch.save(teacher.encoder_layers.state_dict(), weights / "taef2_encoder.pth")
    torch.save(teacher.decoder_layers.state_dict(), weights / "taef2_decoder.pth")
    for command in commands:
        outcome = run(*command[1:])
        assert (outcome.code, outcome.err) == (0, "")
    assert (tmp_path / "here" / "runs" / "eval-kodak" / "table.md").is_file()
    script = page.partition("```python\n")[2].partition("```")[0]
    exec(compile(script, "eval.md", "exec"), {})
    assert (tmp_path / "here" / "runs" / "eval-python" / "summary.json").exists()
