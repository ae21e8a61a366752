"""Whether what got worse is found, and what did not passes."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import pixdec
from pixdec.cli import main
from pixdec.evaluate.check import compare


def scores(change=0.0, spread=0.0, images=12):
    draw = np.random.default_rng(1)
    return {f"{i}.png": {"consistency": 30 + i - change + spread * float(draw.normal())} for i in range(images)}


@pytest.mark.parametrize(
    ("change", "spread", "failed"), [(0, 0, False), (2, 0.5, True), (-2, 0.5, False), (0.1, 0, False), (0.5, 5, False)]
)
def test_what_got_worse_beyond_chance_fails(change, spread, failed):
    found = compare(scores(), scores(change, spread))[0]
    assert found.failed == failed
    assert found.interval[0] <= found.worse <= found.interval[1]


def test_an_image_without_figures_is_refused():
    with pytest.raises(ValueError, match=r"11\.png"):
        compare(scores(images=11), scores())


def test_the_command_passes_itself_and_fails_a_worse_setting(tmp_path, capsys):
    ramp = np.linspace(0, 200, 64)[None, :, None] + np.zeros((64, 64, 3))
    for i in range(3):
        noise = np.random.default_rng(i).normal(0, 20, (64, 64, 3))
        Image.fromarray((ramp + noise).clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
    check = ["check", str(tmp_path), "-r", str(tmp_path / "reference.json"), "--device", "cpu", "--steps", "1"]
    assert main(check) == 2  # nothing was saved
    assert main([*check, "--save"]) == 0
    assert json.loads((tmp_path / "reference.json").read_text())["scores"].keys() == {"0.png", "1.png", "2.png"}
    assert main(check) == 0
    capsys.readouterr()
    assert main([*check, "--strength", "0.8"]) == 1
    assert "consistency          FAILED" in capsys.readouterr().out


def test_the_bundled_decoder_is_as_good_as_it_was():
    """After a better one: `pixdec check EXAMPLES -r tests/evaluate/bundled.json --crop 128 --save`."""
    examples = Path(pixdec.__file__).parent / "serve/web/examples"
    files = [str(examples / f"{name}.webp") for name in ("colosseum", "courtyard", "osprey")]
    reference = str(Path(__file__).with_name("bundled.json"))
    assert main(["check", *files, "-r", reference, "--crop", "128", "--device", "cpu"]) == 0
