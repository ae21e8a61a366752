"""What `python -m benchmarks.serve` writes, of a network of the released kind with random weights, here a tiny one."""

import json

import pytest

from benchmarks import methods, serve
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiDSettings
from pixdec.models.pixdit import PixDiTSettings

BACKBONE = PixDiTSettings(hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=24, pixel_heads=2, pixel_depth=1)


def test_throughput_and_overhead_of_random_weights(monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PIXDEC_CACHE", "")  # put back afterwards
    monkeypatch.setattr(methods, "PiDSettings", lambda: PiDSettings(BACKBONE, AdapterSettings(width=8, blocks=1)))
    out = tmp_path / "serve"
    serve.main(serve.Settings(out, source=methods.RANDOM, side=64, load_sides=(32,), seconds=0.01))
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["overhead"]["ratio"] > 0
    assert {(row["clients"], row["batch"]) for row in found["throughput"]} == {
        (n, b) for n in (1, 2, 4, 8) for b in (1, 4)
    }
    assert "| 32² | 8 | 4 |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".webp").exists()
