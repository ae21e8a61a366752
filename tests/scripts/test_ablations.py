"""The ablations from end to end, on small pictures, in one step."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixdec.weights.load import load_decoder
from scripts import ablations


def test_each_variant_is_trained_and_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablations, "SIGMAS", (0.0,))
    for i in (1, 2):
        coarse = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
        path = tmp_path / "photos" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(coarse).resize((96, 96), Image.Resampling.BICUBIC).save(path)
    out = tmp_path / "out"
    ablations.main(tmp_path / "photos", tmp_path / "photos", out, steps=1, crop=64, images=1, metrics=("psnr",))
    rows = (out / "ablations.md").read_text().splitlines()
    assert [row.split(",")[0] for row in rows if ", σ 0 |" in row] == [
        *(f"| {steps}" for steps in (1, 2, 3, 4)), "| full", "| no prior", "| no gate",
    ]  # fmt: skip
    assert load_decoder(out / "no-gate").network.state_dict()["gates.0.content.bias"] == ablations.OPEN
    assert load_decoder(out / "full").network.state_dict()["gates.0.content.bias"] != ablations.OPEN
