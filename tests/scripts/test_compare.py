"""The table against Real-ESRGAN and the blind pairs, from end to end on small pictures, with networks of no use."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.decoder import PixelDecoder
from pixdec.models.nano import Nano, NanoSettings
from pixdec.models.taef2 import TAEF2
from pixdec.weights.load import save_decoder
from scripts import compare, legibility, pairs

STEPS = "TAEF2 + small, 4 steps"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    torch.manual_seed(0)
    network = Nano(NanoSettings(width=16, blocks=1))
    save_decoder(network, tmp_path / "small.safetensors", name="small", space="rgb", version="nano", licence="none")
    for place, side in (("kodak", 96), ("photos", 128)):
        (tmp_path / place).mkdir()
        for i in (1, 2):
            noise = np.random.default_rng(i).integers(0, 255, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((side, 96), Image.Resampling.BICUBIC).save(tmp_path / place / f"{i}.png")
    taef2 = TAEF2()
    monkeypatch.setattr(compare, "load_taef2", lambda _: taef2)
    monkeypatch.setattr(pairs, "load_taef2", lambda _: taef2)
    monkeypatch.setattr(compare, "load_real_esrgan", lambda _: torch.nn.Identity())
    monkeypatch.setattr(compare, "enlarge", lambda _, x: torch.nn.functional.interpolate(x, scale_factor=4.0))
    monkeypatch.setattr(compare, "niqe", lambda _: 3.0)
    monkeypatch.setattr(compare, "ssimulacra2", lambda *_: 50.0)
    monkeypatch.setattr(compare, "shared_vgg", lambda: Vgg())
    return tmp_path


class Vgg:
    def features(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [x]

    def distance(self, x: torch.Tensor, truth: list[torch.Tensor]) -> torch.Tensor:
        return (x - truth[0]).abs().mean()


def test_table_and_its_cache(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run() -> dict:
        model, out = str(folder / "small.safetensors"), folder / "out" / "table"
        compare.main(folder / "kodak", folder / "photos", folder, folder / "cache", out, model, most=1)
        return json.loads((folder / "out" / "table.json").read_text())

    first = run()
    assert first["images"] == ["1", "2", "1"]  # two of Kodak, one of the others
    assert list(first["rows"])[:3] == [compare.ORIGINAL, compare.LANCZOS, compare.ESRGAN]
    assert set(first["rows"][STEPS][0]) == {*compare.FIGURES, "seconds"}
    assert set(first["rows"][compare.ORIGINAL][0]) == {"niqe", "pattern"}
    text = (folder / "out" / "table.md").read_text()
    assert "n = 3" in text
    assert "| TAEF2 + Lanczos |" in text
    # With other weights, only ours are made and measured again.
    network = Nano(NanoSettings(width=16, blocks=1))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    save_decoder(network, folder / "small.safetensors", name="small", space="rgb", version="nano", licence="none")
    made = list[str]()
    decode = PixelDecoder.decode
    monkeypatch.setattr(PixelDecoder, "decode", lambda *a, **k: made.append("ours") or decode(*a, **k))
    monkeypatch.setattr(compare, "enlarge", lambda *_: made.append("theirs"))
    second = run()
    assert made == ["ours"] * 6
    assert second["rows"][compare.ESRGAN] == first["rows"][compare.ESRGAN]
    assert second["rows"][STEPS] != first["rows"][STEPS]


def test_interval() -> None:
    assert compare.interval([1, 2, 3, 4, 5]) == pytest.approx(2.776 * 1.5811 / 5**0.5, rel=1e-3)
    assert compare.interval([1]) == float("inf")


def test_pairs_are_blind_and_merged(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs, "SIDE", 32)
    monkeypatch.setattr(pairs, "AROUND", 16)
    monkeypatch.setattr(pairs, "PLACES", {"sky": [("1", 16, 8)] * 2, "water": [("2", 60, 64)] * 2})
    out, verdicts = folder / "pairs", folder / "verdicts.txt"
    small = str(folder / "small.safetensors")
    pairs.make(folder / "kodak", folder / "photos", folder, folder / "cache", out, small)
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


def test_legibility_counts_whole_words() -> None:
    image, text = legibility.page(24, 0)
    assert image.size == (768, 256)
    assert legibility.legible(text, text) == 1
    assert legibility.legible("river castle stone bridge", "river castl bridge") == 0.5
    assert legibility.legible(text, "") == 0
