"""The table against Real-ESRGAN and the blind pairs, from end to end on small pictures, with networks of no use."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.speed import Row, Settings
from pixdec.evaluate.metrics.table import OWN, Metrics
from pixdec.evaluate.upscalers import UPSCALERS, Upscaler
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.taef2 import TAEF2
from pixdec.weights.load import save_decoder
from scripts import compare, pairs

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

    def measure_all(settings: Settings, output: Path, *, command: str) -> list[Row]:
        rows = [
            Row(method, side, "ok", "", 1.0, [2.0], 10**9) for side in settings.sides for method in settings.methods
        ]
        Path(f"{output}.json").write_text(json.dumps({"rows": [asdict(row) for row in rows]}))
        return rows

    monkeypatch.setattr(compare, "measure_all", measure_all)
    monkeypatch.setattr(compare, "open_metrics", lambda: Metrics((OWN["psnr"], OWN["pattern"]), {}))
    return tmp_path


def test_table_of_three_sets(folder: Path) -> None:
    def run() -> dict:
        model, out = str(folder / "small.safetensors"), folder / "out" / "table"
        MADE.clear()
        sets = compare.Sets(folder / "kodak", folder / "photos", most=1, pages=2, larger=0)
        compare.main(sets, folder, folder / "runs", out, model, sides=(64,))
        return json.loads((folder / "out" / "table.json").read_text())

    first = run()
    assert MADE == ["theirs"] * 5  # two of Kodak, one of the others, two pages
    assert [len(each["images"]) for each in list(first.values())[:3]] == [2, 1, 2]
    kodak = first["Kodak 1 to 12"]["methods"]
    small = "small, 4 steps"
    assert set(kodak[small]["means"]) == {"psnr", "pattern"}
    text = (folder / "out" / "table.md").read_text()
    assert "| TAEF2 + real-esrgan | 2 |" in text
    assert "| 10 px: small, 1 step | 1 |" in text
    assert "| TAEF2 + lanczos | 64² | 2.00 | 1.00 |" in text
    assert {row["method"] for row in first["time and memory"]} == set(kodak) - {"original"}
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
    pairs.make(folder / "kodak", folder / "photos", out, folder, small)
    (picture,) = (Image.open(path) for path in out.glob("*.png"))
    assert picture.size == (2 * 82, 4 * 54)  # eight pairs, of both rivals
    ours = [Image.open(path).tobytes() for path in sorted((out / "ours").rglob("*.png"))]
    corners = [(82 * (place % 2), 54 * (place // 2) + 16) for place in range(8)]
    shown = [picture.crop((x, y, x + 32, y + 32)).tobytes() for x, y in corners]
    first = [each in ours for each in shown]
    assert sum(first) == 4
    assert (out / "answers.txt").read_text().split() == [f"{i:02}" for i in range(8)]
    for part in (range(3), range(3, 8)):  # in two sittings
        verdicts.write_text("00\n" + "".join(f"{i:02} {'A' if first[i] else 'b'}\n" for i in part))
        pairs.merge(out, "anna", verdicts, "model")
    table = capsys.readouterr().out
    assert table.count("| 4 | 4 | 0 | 100% [100%, 100%] |") == 2
    assert "| model:anna |" in table
    for line in ("08 A", "lanczos-06 A", "01 ="):
        verdicts.write_text(line)
        with pytest.raises(ValueError, match=line):
            pairs.merge(out, "anna", verdicts)
