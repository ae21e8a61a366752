"""The bundled pixel model draws what a caption says, with no download."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers", reason="pixel generators need diffusers")

from pixdec.cli import main

CAPTION = "a red square at the top left on white"


def test_it_draws_color_place_and_background(tmp_path: Path):
    assert main(["l2p", "generate", "--prompt", CAPTION, "--steps", "12", "-o", str(tmp_path / "a.png")]) == 0
    image = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).astype(int)
    assert image.shape == (64, 64, 3)
    square, rest = image[10:22, 10:22].mean((0, 1)), image[36:, 36:].mean((0, 1))
    assert square[0] > 150 > 110 > square[1:].max()
    assert rest.min() > 200


def test_what_it_does_not_know(tmp_path: Path, capsys):
    assert main(["l2p", "generate", "--prompt", "a red fox", "-o", str(tmp_path / "a.png")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "'fox'" in told[0]
    assert "circle" in told[0]


def test_benchmarks_of_text_to_image(tmp_path: Path, capsys):
    lines = [{"tag": "colors", "prompt": CAPTION}, {"tag": "counting", "prompt": "two green stars on black"}]
    (tmp_path / "meta.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    few = ["--steps", "2", "--device", "cpu"]
    assert main(["l2p", "bench", "geneval", str(tmp_path / "meta.jsonl"), "-o", str(tmp_path / "out"), *few]) == 0
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["00000", "00001"]
    assert len(list((tmp_path / "out" / "00001" / "samples").iterdir())) == 4
    (tmp_path / "dpg").mkdir()
    (tmp_path / "dpg" / "one.txt").write_text(CAPTION)
    assert main(["l2p", "bench", "dpg", str(tmp_path / "dpg"), "-o", str(tmp_path / "sheets"), *few]) == 0
    assert Image.open(tmp_path / "sheets" / "one.png").size == (128, 128)
    assert "dist_eval.sh" in capsys.readouterr().out
    assert main(["l2p", "bench", "dpg", str(tmp_path / "none"), "-o", str(tmp_path / "sheets")]) == 2
