"""A bench in real child processes: rows, their figures, going on, refusing to mix, and what ends one row only."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pixdec.bench.measure import Gauge, Method, run
from pixdec.bench.rows import check_same, read_bench, write_bench
from pixdec.bench.run import FILE, bench, run_child
from pixdec.bench.settings import BenchSettings, Job, job_of
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.weights.load import save_decoder

MB = 10**6


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny decoder of FLUX.1 latents that reads captions, with random weights."""
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    backbone = PixDiTSettings(
        hidden=32, heads=2, depth=2, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=8, text_length=6
    )
    torch.manual_seed(0)
    network = PiD(PiDSettings(backbone, AdapterSettings(width=8, blocks=1)))
    save_decoder(network, path, name="tiny", space="flux1", version="v1", licence="none")
    return path


def quick(decoder: Path, **changes: Any) -> BenchSettings:
    chosen: dict[str, Any] = {
        "sides": (64,),
        "ours": ("plain", "eager"),
        "device": "cpu",
        "dtype": "float32",
        "runs": 2,
        "warmup": 1,
    }
    return BenchSettings(model=str(decoder), **{**chosen, **changes})


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A baseline that cannot be loaded."""
    path = tmp_path_factory.mktemp("damaged") / "model.pth"
    path.write_bytes(b"no model")
    return f"tiny+spandrel:{path}"


@pytest.fixture(scope="module")
def first(decoder: Path, damaged: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a bench: ours, one that decodes and enlarges, and one that fails."""
    out = tmp_path_factory.mktemp("first")
    rows = list(bench(quick(decoder, beside=("tiny+lanczos", damaged)), out, command="pixdec bench"))
    assert [row.status for row in rows] == ["ok", "ok", "ok", "failed"], rows
    return out


def test_rows_and_what_they_were_measured_on(first: Path) -> None:
    found = read_bench(first / FILE)
    assert found is not None
    plain, eager, tiny, _ = found.rows
    assert [(row.method, row.side) for row in (plain, eager, tiny)] == [
        ("plain", 64),
        ("eager", 64),
        ("tiny+lanczos", 64),
    ]
    for row in (plain, eager, tiny):
        assert len(row.seconds) == 2 and all(0 < each < 60 for each in row.seconds)
        assert row.first is not None and row.first > 0
        assert row.finite is True
        memory = row.memory
        assert memory["weights"] > 0 and memory["libraries"] > 50 * MB
        assert 0 <= memory["activations"] <= memory["peak"] < 2000 * MB
    assert plain.memory["weights"] == eager.memory["weights"] != tiny.memory["weights"]
    assert eager.memory["text"] == 6 * 8 * 4 and tiny.memory["text"] == 0
    # The plain path makes the condition in all four steps.
    assert plain.counted["flops"] > eager.counted["flops"] > 0 and not tiny.counted
    assert found.model["dtype"] == "float32" and found.settings["steps"] == 4
    assert found.peaks["float32"] > 1e9 and found.peaks["bandwidth"] > 1e8
    assert found.commands == ("pixdec bench",)


def test_what_cannot_be_measured_is_a_row(first: Path) -> None:
    found = read_bench(first / FILE)
    assert found is not None
    row = found.rows[-1]
    assert row.status == "failed" and not row.seconds and not row.memory
    assert "spandrel" in row.reason and "\n" not in row.reason


def test_the_same_command_goes_on(first: Path, decoder: Path, damaged: str, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes((first / FILE).read_bytes())
    before = read_bench(tmp_path / FILE)
    assert before is not None
    settings = quick(decoder, beside=("tiny+lanczos", damaged, "lanczos", "tiny"))
    going = bench(settings, tmp_path, command="another")
    row = next(going)
    going.close()  # interrupted: what was measured is in the file, what failed before is not tried again
    after = read_bench(tmp_path / FILE)
    assert after is not None and after.rows == (*before.rows, row)
    assert row.method == "lanczos" and after.peaks == before.peaks
    assert after.commands == ("pixdec bench", "another")
    assert [row.method for row in bench(settings, tmp_path, retry=True)] == [damaged, "tiny"]
    assert list(bench(settings, tmp_path)) == []


@pytest.mark.parametrize(
    ("part", "change", "words"),
    [
        ("machine", {"name": "Another"}, "measured on name Another"),
        ("versions", {"torch": "0.1"}, "measured with torch 0.1"),
        ("libraries", {"pillow": "0.1"}, "measured with pillow 0.1"),
        ("settings", {"runs": 7}, "measured with runs 7, this is 2"),
        ("model", {"parameters": 1}, "measured of parameters 1"),
    ],
)
def test_rows_that_would_not_compare(first: Path, part: str, change: dict[str, object], words: str) -> None:
    found = read_bench(first / FILE)
    assert found is not None
    check_same(first / FILE, found, found)
    with pytest.raises(ValueError, match=f"{words}.*choose another folder"):
        check_same(first / FILE, replace(found, **{part: {**getattr(found, part), **change}}), found)


def test_a_library_may_come_later(first: Path) -> None:
    found = read_bench(first / FILE)
    assert found is not None
    check_same(first / FILE, replace(found, libraries={}), found)


def test_rows_of_other_code_are_left_as_they_are(first: Path, decoder: Path, tmp_path: Path) -> None:
    found = read_bench(first / FILE)
    assert found is not None
    write_bench(replace(found, versions={**found.versions, "code": "0" * 12}), tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ValueError, match="measured with code 000000000000"):
        list(bench(quick(decoder, beside=("lanczos",)), tmp_path))
    assert (tmp_path / FILE).read_bytes() == before


def test_a_file_of_something_else_is_refused(decoder: Path, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('{"format": 1, "rows": 3}')
    with pytest.raises(ValueError, match="no file of this version"):
        list(bench(quick(decoder), tmp_path))


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")
def test_memory_that_is_not_there_is_a_row(decoder: Path) -> None:
    job = replace(job_of(quick(decoder), "lanczos", 16384), dtype="float32", memory=1200 * MB)
    outcome = run_child(job)  # 3 · 16384² float32 alone are 3.2 GB
    assert outcome["status"] == "out of memory", outcome
    assert "\n" not in outcome["reason"]


def test_a_row_over_its_limit(decoder: Path) -> None:
    job = replace(job_of(quick(decoder), "eager", 64), limit=0.5)
    started = time.perf_counter()
    assert run_child(job) == {"status": "over the limit", "reason": "not done after 0.5 s"}
    assert time.perf_counter() - started < 5


def test_a_process_that_is_killed(decoder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Python itself is told, by its own means, to end while it starts: like the kernel, without a word."""
    (tmp_path / "sitecustomize.py").write_text(f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    outcome = run_child(job_of(quick(decoder), "eager", 64))
    assert outcome["status"] == "killed" and "SIGKILL" in outcome["reason"]


def test_a_child_leaves_with_its_parent(decoder: Path, tmp_path: Path) -> None:
    job = replace(job_of(quick(decoder, runs=100_000), "eager", 64), dtype="float32")
    process = subprocess.Popen(
        [sys.executable, "-m", "pixdec.bench.child", str(tmp_path / "result.json")], stdin=subprocess.PIPE
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
    process.stdin.flush()
    time.sleep(1)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=30) == 1
    assert not (tmp_path / "result.json").exists()


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--model no-such-model"):
        list(bench(BenchSettings(model="no-such-model", sides=(64,), device="cpu"), tmp_path))
    with pytest.raises(ValueError, match=r"--model"):
        list(bench(BenchSettings(sides=(64,), device="nonsense"), tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_runs_that_do_not_fit_are_left_out() -> None:
    def slow() -> torch.Tensor:
        time.sleep(0.05)
        return torch.zeros(1)

    cpu = torch.device("cpu")
    _, timing = run(slow, cpu, warmup=1, runs=50, deadline=time.perf_counter() + 0.4)
    assert 2 <= len(timing.seconds) <= 7 and min(timing.seconds) >= 0.05
    _, timing = run(slow, cpu, warmup=1, runs=3, deadline=time.perf_counter() - 1)
    assert len(timing.seconds) == 1
    assert len(run(slow, cpu, warmup=2, runs=3, deadline=time.perf_counter() + 60)[1].seconds) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the resident set is a bound only")
def test_memory_is_what_was_held() -> None:
    """Weights of 80 MB and activations of 320 MB that are gone again when they are read."""
    gauge = Gauge(torch.device("cpu"))
    network = torch.nn.Linear(20_000, 1000, bias=False)
    torch.ones(100_000_000).sum()  # 400 MB on the way, while it is loaded
    method = Method(lambda: torch.ones(80_000_000).sum(), [network], [])
    gauge.start(method)
    method.call()
    memory = gauge.read(method)
    assert memory.how == "resident set"
    assert memory.weights == 80 * MB
    assert memory.activations == pytest.approx(320 * MB, rel=0.05)
    assert memory.peak == pytest.approx(400 * MB, rel=0.1)
    assert memory.libraries is not None and memory.libraries > 50 * MB


def test_jobs_survive_json(decoder: Path) -> None:
    job = job_of(quick(decoder), "eager", 64)
    assert Job(**json.loads(json.dumps(asdict(job)))) == job
