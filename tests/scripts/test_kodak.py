"""The quality table, made from end to end on two small pictures with small random models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.models.taef2 import TAEF2
from scripts import kodak


def test_table_is_written(tmp_path: Path):
    torch.manual_seed(0)
    teacher = TAEF2()
    torch.save(teacher.encoder_layers.state_dict(), tmp_path / "taef2_encoder.pth")
    torch.save(teacher.decoder_layers.state_dict(), tmp_path / "taef2_decoder.pth")
    rng = np.random.default_rng(0)
    for i in range(2):
        small = Image.fromarray(rng.integers(80, 180, (6, 8, 3), dtype=np.uint8))
        small.resize((192, 128), Image.Resampling.BICUBIC).save(tmp_path / f"picture{i}.png")
    kodak.main(tmp_path, tmp_path, tmp_path / "out", steps=(1,))
    table = json.loads((tmp_path / "out.json").read_text())
    assert list(table["means"]) == ["TAEF2 + Lanczos", "tiny + Lanczos", "pixdec-nano, 1 step"]
    ours, plain = table["means"]["pixdec-nano, 1 step"], table["means"]["tiny + Lanczos"]
    assert ours["psnr"] > 20
    assert plain["consistency"] > 30
    trips = json.loads((tmp_path / "out-roundtrip.json").read_text())["means"]
    assert list(trips) == ["TAEF2", "pixdec-tiny", "pixdec-tiny, not refined"]
    assert trips["pixdec-tiny"]["psnr"] > trips["pixdec-tiny, not refined"]["psnr"]
    assert Image.open(tmp_path / "out-picture1.webp").size == (4 * 2 * kodak.CROP, 2 * kodak.CROP)


def test_missing_baseline_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"taef2_encoder\.pth"):
        kodak.main(tmp_path, tmp_path, tmp_path / "out")
