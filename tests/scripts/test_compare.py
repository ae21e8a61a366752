"""The table against Real-ESRGAN and the blind pairs, from end to end on small pictures, with networks of no use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.evaluate.metrics.table import OWN, Metrics
from pixdec.evaluate.upscalers import UPSCALERS, Upscaler
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.taef2 import TAEF2
from pixdec.weights.load import save_decoder
from scripts import compare, legibility, pairs

MADE = list[str]()


def save_small(path: Path, deviation: float | None = None) -> None:
    network = Nano(NanoSettings(width=16, blocks=1))
    for parameter in network.parameters() if deviation else ():
        torch.nn.init.normal_(parameter, std=deviation)
    save_decoder(network, path, name="small", space="rgb", version="nano", licence="none")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    save_small(tmp_path / "small.safetensors")
    for place, side in (("kodak", 128), ("photos", 192)):
        (tmp_path / place).mkdir()
        for i in (1, 2):
            noise = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((side, 128), Image.Resampling.BICUBIC).save(tmp_path / place / f"{i}.png")
    taef2 = TAEF2()
    torch.save(taef2.encoder_layers.state_dict(), tmp_path / "taef2_encoder.pth")
    torch.save(taef2.decoder_layers.state_dict(), tmp_path / "taef2_decoder.pth")

    def enlarge(image: torch.Tensor, scale: int, seed: int) -> torch.Tensor:
        MADE.append("theirs")
        return torch.nn.functional.interpolate(image, scale_factor=float(scale))

    monkeypatch.setitem(UPSCALERS, "real-esrgan", Upscaler("BSD-3", lambda *_: enlarge))
    monkeypatch.setattr(compare, "open_metrics", lambda: Metrics((OWN["psnr"], OWN["pattern"]), {}))
    return tmp_path


def test_table_of_three_sets(folder: Path) -> None:
    def run() -> dict:
        model, out = str(folder / "small.safetensors"), folder / "out" / "table"
        MADE.clear()
        compare.main(folder / "kodak", folder / "photos", folder, folder / "runs", out, model, most=1, pages=1)
        return json.loads((folder / "out" / "table.json").read_text())

    first = run()
    assert MADE == ["theirs"] * 4  # two of Kodak, one of the others, one page
    assert [len(each["images"]) for each in first.values()] == [2, 1, 1]
    kodak = first["Kodak 1 to 12"]["methods"]
    small = next(name for name in kodak if name.endswith(":4"))
    assert set(kodak[small]["means"]) == {"psnr", "pattern", "seconds"}
    text = (folder / "out" / "table.md").read_text()
    assert "| TAEF2 + real-esrgan | 2 |" in text
    assert (folder / "runs" / "kodak" / "report.html").is_file()
    # With other weights, only ours are made and measured again.
    save_small(folder / "small.safetensors", 0.1)
    second = run()
    assert MADE == []
    again = second["Kodak 1 to 12"]["methods"]
    assert again["original"]["figures"] == kodak["original"]["figures"]
    assert again[small]["figures"] != kodak[small]["figures"]


def test_pairs_are_blind_and_merged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs, "SIDE", 32)
    monkeypatch.setattr(pairs, "AROUND", 16)
    monkeypatch.setattr(pairs, "PLACES", {"sky": [("1", 16, 8)] * 2, "water": [("2", 60, 64)] * 2})
    out, verdicts = folder / "pairs", folder / "verdicts.txt"
    small = str(folder / "small.safetensors")
    pairs.make(folder / "kodak", folder / "photos", folder, out, small)
    pictures = [Image.open(path) for path in sorted(out.glob("*.png"))]
    assert [picture.size for picture in pictures] == [(80, 32)] * 8
    ours = [Image.open(path).tobytes() for path in sorted((out / "ours").rglob("*.png"))]
    first = [picture.crop((0, 0, 32, 32)).tobytes() in ours for picture in pictures]
    assert (sum(first[:4]), sum(first[4:])) == (2, 2)  # of each rival
    for part in (slice(0, 3), slice(3, 8)):  # in two sittings
        names = [f"{rival}-{index:02}" for rival in ("lanczos", "real-esrgan") for index in range(4)]
        chosen = zip(names[part], first[part], strict=True)
        verdicts.write_text("".join(f"{name} {'A' if is_ours else 'b'}\n" for name, is_ours in chosen))
        pairs.merge(out, "anna", verdicts)
    assert capsys.readouterr().out.count("| 4 | 4 | 0 | 100% [100%, 100%] |") == 2
    for line in ("lanczos-04 A", "06 A", "lanczos-01 ="):
        verdicts.write_text(line)
        with pytest.raises(ValueError, match=line):
            pairs.merge(out, "anna", verdicts)


def test_legibility_of_drawn_lines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(legibility, "legibility", lambda image, text: float(len(text) > 0 and image.size == (768, 256)))
    legibility.main(str(folder / "small.safetensors"), sizes=(24,), pages=1, steps=1)
    assert "| 24 | 100% | 100% | 100% |" in capsys.readouterr().out
