"""Reports: the tables that people read, the JSON that machines read, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixdec.evaluate.metrics import consistency, spectrum_error
from pixdec.evaluate.report import COLUMNS, Report, measure
from pixdec.evaluate.scores import NEEDS


def report() -> Report:
    return Report(
        "Kodak",
        ["one.png", "two.png"],
        {
            "ours": [{"niqe": 3.0, "psnr": 24.0, "seconds": 1.5}, {"niqe": 4.0, "psnr": 26.0, "seconds": 2.5}],
            "base | line": [{"psnr": 25.0}, {"psnr": math.inf}],
        },
        {"command": "pixdec bench", "hardware": "2 cores"},
    )


def test_means() -> None:
    means = report().means()
    assert means["ours"] == {"niqe": 3.5, "psnr": 25.0, "seconds": 2.0}
    assert means["base | line"] == {"psnr": math.inf}


def test_markdown() -> None:
    lines = report().markdown().splitlines()
    assert lines[0] == "# Kodak"
    assert "- command: pixdec bench" in lines
    assert "- mean over 2 images" in lines
    head = lines.index("| method | PSNR dB ↑ | NIQE (published model) ↓ | seconds |")
    assert lines[head + 1 : head + 4] == [
        "| --- | ---: | ---: | ---: |",
        "| ours | 25.00 | 3.50 | 2.000 |",
        "| base \\| line | inf | – | – |",
    ]
    assert "| two.png | ours | 26.00 | 4.00 | 2.500 |" in lines


def test_json_is_strict_and_unrounded() -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    document = json.loads(report().to_json(), parse_constant=refuse)
    assert document["rows"]["ours"][1] == {"niqe": 4.0, "psnr": 26.0, "seconds": 2.5}
    assert document["rows"]["base | line"][1] == {"psnr": "inf"}
    assert document["means"]["ours"]["psnr"] == 25.0
    assert document["images"] == ["one.png", "two.png"]


def test_write(tmp_path: Path) -> None:
    markdown, figures = report().write(tmp_path / "kodak.v1")
    assert (markdown.name, figures.name) == ("kodak.v1.md", "kodak.v1.json")
    assert markdown.read_text(encoding="utf-8") == report().markdown()
    assert figures.read_text(encoding="utf-8") == report().to_json()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kodak.v1.json", "kodak.v1.md"]
    with pytest.raises(OSError, match="cannot write"):
        report().write(tmp_path / "absent" / "kodak")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "at least one image"),
        ({"m": [{"psnr": 1.0}]}, "figures of 1 images: expected 2"),
        ({"m": [{"psnr": 1.0}, {"ssim": 1.0}]}, r"\['ssim'\] for b: expected \['psnr'\]"),
        ({"m": [{"psnr": 1.0}, {"psnr": math.nan}]}, "psnr of 'm' on b is NaN"),
    ],
)
def test_refuses(rows: dict[str, list[dict[str, float]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Report("t", ["a", "b"], rows)


def test_measure_gives_every_figure() -> None:
    rng = np.random.default_rng(8)
    reference = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).resize((256, 192))
    low = reference.resize((64, 48), Image.Resampling.BICUBIC)
    image = low.resize((256, 192), Image.Resampling.LANCZOS)
    own = set(COLUMNS) - set(NEEDS)
    figures = measure(image, reference, low=low, only=own)
    assert list(figures) == [metric for metric in COLUMNS if metric in own]
    assert all(math.isfinite(value) for value in figures.values())
    assert "consistency" not in measure(image, reference, only=own)
    assert figures["consistency"] == consistency(image, low)
    assert figures["spectrum_error_high"] == spectrum_error(image, reference, band=(0.25, 1))
    assert measure(image, reference, scale=2, only=own)["spectrum_error_high"] == spectrum_error(
        image, reference, band=(0.5, 1)
    )
    Report("t", ["a"], {"m": [figures]})
