"""The page and the picture of a bench, from figures that are known."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from PIL import Image

from pixdec.bench.plot import draw, spaced
from pixdec.bench.report import markdown
from pixdec.bench.rows import Bench, Row, Status, read_bench, seconds_of, write_bench

GB = 10**9


def measured(method: str, side: int, seconds: tuple[float, ...], peak: float, flops: float | None = None) -> Row:
    memory = {
        "peak": int(peak * GB), "weights": GB, "text": 1_382_400, "activations": int((peak - 1) * GB),
        "libraries": None, "reserved": int(peak * GB), "how": "allocated on the GPU",
    }  # fmt: skip
    counted = {} if flops is None else {"flops": int(flops), "moved": 50 * GB}
    return Row(method, side, 1, "ok", "", 3.0, seconds, seconds, memory, counted, finite=True)


def missing(method: str, side: int, status: Status, reason: str) -> Row:
    return Row(method, side, 1, status, reason)


@pytest.fixture
def bench() -> Bench:
    return Bench(
        machine={
            "device": "cuda", "name": "A GPU", "memory": 80 * GB, "processor": "A processor", "system": "Linux",
            "cores": 16, "threads": 8, "instructions": "AVX512",
        },
        versions={"pixdec": "0.1.0", "code": "abc", "python": "3.12", "torch": "2.13", "cuda": "13.0", "cudnn": 9},
        libraries={"diffusers": "0.42"},
        model={"name": "random:v1", "parameters": 1_362_000_000, "space": "flux1", "scale": 4},
        settings={"model": "random:v1", "dtype": "bfloat16", "steps": 4, "batch": 1, "runs": 3, "warmup": 2},
        peaks={"bfloat16": 800e12, "float32": 50e12, "bandwidth": 4e12},
        commands=("pixdec bench --model random:v1 -o out",),
        rows=(
            measured("vae:flux1", 2048, (0.5, 0.4, 0.6), 36),
            measured("plain", 2048, (1.2, 1.0, 1.1), 16.5, 168e12),
            measured("eager", 2048, (0.55, 0.5, 0.6), 5.5, 160e12),
            missing("vae:flux1", 4096, "out of memory", "CUDA out of memory"),
            measured("eager", 4096, (3.0, 2.9, 3.1), 8, 1600e12),
            missing("plain", 4096, "over the limit", "not done after 600 s"),
        ),
    )  # fmt: skip


def test_the_page(bench: Bench) -> None:
    page = markdown(bench, "bench.webp").splitlines()
    assert page[0] == "# `pixdec bench`: random:v1 on A GPU"
    assert "- machine: A GPU (cuda), 80 GB; host A processor, 16 cores, threads used 8, AVX512, Linux" in page
    assert "- command: `pixdec bench --model random:v1 -o out`" in page
    assert "![Latency and memory against megapixels](bench.webp)" in page
    # Ours first, in the order in which they were measured; then the others.
    latency = page[page.index("## Latency") :]
    assert latency[4:9] == [
        "| method | 2048² | 4096² |",
        "| --- | ---: | ---: |",
        "| plain | 1.1 s (1 s to 1.2 s, n 3) | over the limit |",
        "| eager | 550 ms (500 ms to 600 ms, n 3) | 3 s (2.9 s to 3.1 s, n 3) |",
        "| vae:flux1 | 500 ms (400 ms to 600 ms, n 3) | out of memory |",
    ]
    assert "| plain | 16.50 GB | over the limit |" in page
    assert "| eager | 2048² | 1.00 GB | 1.4 MB | 4.50 GB | 5.50 GB |" in page
    against = page[page.index("## Against the plain path") :]
    assert against[4] == "| eager | 2.00× as fast, 33% of the memory | no plain figure |"
    # 160 TFLOP at 800 TFLOP/s are 200 ms, of 550 measured; 50 GB at 4 TB/s are 12.5 ms.
    assert "| eager | 2048² | 160 | 50 | 200 ms | 12.5 ms | 550 ms | 36% |" in page
    assert page[-2:] == [
        "- vae:flux1, 4096²: out of memory: CUDA out of memory",
        "- plain, 4096²: over the limit: not done after 600 s",
    ]


def test_lines_as_rows_come(bench: Bench) -> None:
    assert bench.rows[2].line() == "eager  2048x2048  550 ms (500 ms to 600 ms, n 3, first 3 s)  5,500 MB"
    assert bench.rows[3].line() == "vae:flux1  4096x4096  out of memory: CUDA out of memory"


def test_the_file_holds_all_of_it(bench: Bench, tmp_path: Path) -> None:
    write_bench(bench, tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == bench
    assert read_bench(tmp_path / "another.json") is None


def test_the_picture(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(bench, tmp_path / "bench.webp")
    with Image.open(tmp_path / "bench.webp") as picture:
        assert picture.format == "WEBP" and picture.width > 1000
        colours = {colour for _, colour in picture.convert("RGB").quantize(64).convert("RGB").getcolors() or []}
    assert len(colours) > 10
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(Bench(**{**vars(bench), "rows": (bench.rows[3],)}), tmp_path / "empty.webp")
    assert not (tmp_path / "empty.webp").exists()


def test_names_are_kept_apart() -> None:
    assert spaced([0.1, 0.5, 0.9], 0.1) == [0.1, 0.5, 0.9]
    places = spaced([0.2, 0.2, 0.2, 0.31, 0.9], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(places))
    assert places[4] == 0.9
    assert sum(places[:4]) == pytest.approx(0.2 * 3 + 0.31)
    assert spaced([0.95, 0.99], 0.1) == pytest.approx([0.9, 1.0])
    assert spaced([0.0, 0.01], 0.1) == pytest.approx([0.0, 0.1])


def test_seconds() -> None:
    assert [seconds_of(x) for x in (0.0123456, 0.4466, 1.0, 26.24, 1234.5)] == [
        "12.3 ms", "447 ms", "1 s", "26.2 s", "1234 s",
    ]  # fmt: skip
