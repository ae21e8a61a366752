"""A table of real child processes: rows, their figures, going on, refusing to mix, and what ends one row only."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from battery import randomised
from benchmarks.child import timed_calls
from benchmarks.methods import OURS, Method, check_name, prepare
from benchmarks.speed import SHARED, Row, Settings, measure_all, page, run_child, seconds_of
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

CPU = torch.device("cpu")
QUICK = Settings(sides=(64,), methods=("eager",), device="cpu", dtype="float32", runs=2)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of one row."""
    out = tmp_path_factory.mktemp("table") / "out"
    rows = list(measure_all(QUICK, out, command="python -m benchmarks"))
    assert [row.method for row in rows] == list(QUICK.methods)
    return out


def test_rows(table: Path) -> None:
    record = json.loads(table.with_suffix(".json").read_text())
    eager = Row(**record["rows"][0])
    assert eager.status == "ok" and len(eager.seconds) == 2 and eager.first > 0
    assert 1e6 < eager.weights <= eager.peak < 1e9
    assert record["facts"]["dtype"] == "float32" and "libraries" in record["facts"]
    text = table.with_suffix(".md").read_text()
    assert "    python -m benchmarks\n" in text and f"| eager | {eager.time} |" in text and torch.__version__ in text


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    """Outcomes without processes, on the same machine."""
    facts = json.loads(table.with_suffix(".json").read_text())["facts"]

    def outcome(settings: Settings, method: str | None = None, side: int = 0) -> dict[str, object]:
        if method is None:
            return {"status": "ok", **{name: value for name, value in facts.items() if name not in SHARED}}
        return {"status": "ok", "first": 1.0, "seconds": [1.0] * settings.runs, "peak": 2, "weights": 1}

    monkeypatch.setattr("benchmarks.speed.run_child", outcome)


@pytest.mark.usefixtures("made_up")
def test_the_same_command_goes_on(table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.with_suffix(".json").write_bytes(table.with_suffix(".json").read_bytes())
    more = replace(QUICK, methods=(*QUICK.methods, "tiny+lanczos"))
    assert [row.method for row in measure_all(more, out)] == ["tiny+lanczos"]
    assert list(measure_all(more, out)) == []
    before = out.with_suffix(".json").read_bytes()
    with pytest.raises(ValueError, match=r"runs 2, this is 3.*--output"):
        list(measure_all(replace(more, runs=3), out))
    assert out.with_suffix(".json").read_bytes() == before


@pytest.mark.usefixtures("made_up")
def test_retry_measures_what_failed(table: Path, tmp_path: Path) -> None:
    record = json.loads(table.with_suffix(".json").read_text())
    record["rows"] = [asdict(Row("tiny", 64, "failed", "once")), record["rows"][0]]
    (tmp_path / "out.json").write_text(json.dumps(record))
    again = replace(QUICK, methods=("tiny", "eager"))
    assert [(row.method, row.status) for row in measure_all(again, tmp_path / "out", retry=True)] == [("tiny", "ok")]


@pytest.mark.usefixtures("made_up")
def test_a_file_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text('{"rows": 3}')
    with pytest.raises(ValueError, match="not a table"):
        list(measure_all(QUICK, tmp_path / "out"))


@pytest.mark.parametrize(
    "change",
    [{"sides": (100,)}, {"methods": ("vae:flux9",)}, {"methods": ("lanczos",)}, {"runs": 0}, {"limit": -1.0}],
    ids=str,
)
def test_settings_of_nothing(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(change))} "):
        replace(QUICK, **change)


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--model no-such-model"):
        list(measure_all(replace(QUICK, model="no-such-model"), tmp_path / "out"))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")
def test_memory_that_is_not_there_is_a_row() -> None:
    """An image of 3 TB is refused, not swapped for."""
    outcome = run_child(QUICK, "tiny", 512 * 1024)
    assert outcome["status"] == "out of memory" and "\n" not in outcome["reason"], outcome


def test_a_row_over_its_limit() -> None:
    assert run_child(replace(QUICK, limit=0.3), "eager", 64)["status"] == "over the limit"


def test_runs_that_do_not_fit_are_left_out() -> None:
    def slow() -> torch.Tensor:
        time.sleep(0.05)
        return torch.zeros(1, 3, 64, 64)

    many = replace(QUICK, runs=50)
    first, seconds = timed_calls(Method(slow, []), many, 64, CPU, time.time() + 0.4)
    assert 2 <= len(seconds) <= 7 and min(first, *seconds) >= 0.05
    assert len(timed_calls(Method(slow, []), many, 64, CPU, time.time() - 1)[1]) == 1
    with pytest.raises(ValueError, match=r"gave \(1, 3, 64, 64\)"):
        timed_calls(Method(slow, []), many, 128, CPU, 0.0)


def test_a_child_leaves_with_its_parent(tmp_path: Path) -> None:
    job = {"settings": asdict(replace(QUICK, runs=10**6)), "method": "eager", "side": 64, "started": time.time()}
    command = [sys.executable, "-m", "benchmarks.child", str(tmp_path / "result.json")]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=root) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        time.sleep(0.5)
        assert process.poll() is None
        process.stdin.close()
        assert process.wait(timeout=60) == 1
    assert not (tmp_path / "result.json").exists()


def test_plain_gives_the_image_of_decode(tmp_path: Path) -> None:
    backbone = PixDiTSettings(
        hidden=32, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=8, text_length=6
    )
    network = randomised(PiD(PiDSettings(backbone, AdapterSettings(width=8, blocks=1))))
    save_decoder(network, tmp_path / "small.safetensors", name="small", space="flux1", version="v1", licence="none")
    eager, plain = (
        prepare(name, str(tmp_path / "small.safetensors"), 128, None, torch.float32, CPU).call()
        for name in ("eager", "plain")
    )
    assert eager.shape == (1, 3, 128, 128) and float(eager.std()) > 0.01 and not plain.requires_grad
    assert float((plain - eager).abs().max()) < 1e-4  # four steps of a network whose sums are ordered otherwise
    with pytest.raises(ValueError, match="plain: pixdec-nano"):
        prepare("plain", "pixdec-nano", 64, None, torch.float32, CPU)


@pytest.mark.parametrize("name", ["vae:flux2:tiled+lanczos", "tiny", "tiny+lanczos", "taef2+lanczos"])
def test_baselines_give_the_same_size(name: str) -> None:
    check_name(name)
    images = prepare(name, "", 64, None, torch.float32, CPU).call()
    assert images.shape == (1, 3, 64, 64) and images.dtype == torch.float32
    assert float(images.min()) >= 0 and float(images.max()) <= 1 and float(images.std()) > 0


def test_the_released_size() -> None:
    """Parameters of the released FLUX.1 checkpoint, version 1."""
    with torch.device("meta"):
        network = PiD(PiDSettings())
    assert sum(p.numel() for p in network.parameters()) == 1_362_348_170


def test_the_page() -> None:
    rows = [
        Row("eager", 2048, "ok", "", 3.0, (0.55, 0.5, 0.6), 5_500_000_000, 2_700_000_000),
        Row("eager", 4096, "out of memory", "CUDA out of memory"),
    ]
    lines = page({"network": "random:v1", "device": "A GPU"}, rows, "python -m benchmarks").splitlines()
    assert "| eager | 550 ms (500 ms to 600 ms), first 3 s | out of memory |" in lines
    assert "| eager | 5.50 GB, weights 2.70 | out of memory |" in lines
    assert lines[-1] == "- eager  4096x4096  out of memory: CUDA out of memory"
    assert OURS[0] == "plain" and [seconds_of(x) for x in (0.0123456, 26.24, 1234.5)] == ["12.3 ms", "26.2 s", "1234 s"]


def test_eight_bits_are_a_row(tmp_path: Path) -> None:
    pytest.importorskip("torchao")
    backbone = PixDiTSettings(
        hidden=128, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=8, text_length=6
    )
    network, path = (
        randomised(PiD(PiDSettings(backbone, AdapterSettings(width=8, blocks=1)))),
        tmp_path / "a.safetensors",
    )
    save_decoder(network, path, name="small", space="flux1", version="v1", licence="none")
    outcome = run_child(replace(QUICK, model=str(path), runs=1), "int8", 64)
    assert outcome["status"] == "ok", outcome
    assert outcome["weights"] < sum(each.nbytes for each in network.parameters())
