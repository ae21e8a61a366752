"""Processes share the work of a verb, and end alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixdec.cli.processes import Process
from pixdec.cli.report import Report
from ring import run_ring

SIZES = {"a.bmp": (8, 8), "b.bmp": (40, 30), "c.bmp": (20, 20), "d.bmp": (30, 31), "e.bmp": (10, 10)}


def test_the_largest_is_given_out_first() -> None:
    costs = [1, 9, 4, 8, 2, 3]
    parts = [Process(rank, 2).part_of(range(6), costs.__getitem__) for rank in range(2)]
    assert parts == [[1, 4, 5], [0, 2, 3]]
    assert [sum(costs[i] for i in part) for part in parts] == [14, 13]
    assert [Process(rank, 3).part_of("ab", lambda _: 1.0) for rank in range(3)] == [["a"], ["b"], []]
    assert Process().part_of("ab", lambda _: 1.0) == ["a", "b"]


def test_teams_have_their_work_in_common() -> None:
    parts = [Process(rank, 4).part_of("abc", lambda _: 1.0, team=2) for rank in range(4)]
    assert parts == [["a", "c"], ["a", "c"], ["b"], ["b"]]
    assert [Process(rank, 4).leads(2) for rank in range(4)] == [True, False, True, False]
    assert [Process(rank, 4).leads() for rank in range(4)] == [True, False, False, False]
    with pytest.raises(ValueError, match="3 of 4 processes for each image"):
        Process(0, 4).part_of("abc", lambda _: 1.0, team=3)
    with pytest.raises(ValueError, match="2 of 1 process for each image"):
        Process().carry_out(Report(json_lines=False), lambda: "abc", lambda _: 1.0, lambda _: None, team=2)


def test_alone_all_is_as_without_processes() -> None:
    made: list[str] = []
    report = Report(json_lines=False)
    assert Process().carry_out(report, lambda: "abc", lambda _: 1.0, made.extend) == 0
    assert made == ["a", "b", "c"]
    report.failures = 1
    assert Process().carry_out(report, list, lambda _: 1.0, lambda _: pytest.fail("there is nothing to make")) == 2
    with pytest.raises(OSError, match="no such disk"):
        Process().carry_out(report, lambda: "a", lambda _: 1.0, lambda _: fail("no such disk"))


def fail(words: str) -> None:
    raise OSError(words)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    noise = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        write(folder / "pictures" / name, noise.integers(0, 256, (height, width, 3)))
    (folder / "pictures" / "f.bmp").write_text("no image")
    write(folder / "other0" / "a.bmp", np.zeros((8, 8, 3)))
    write(folder / "other1" / "b.bmp", np.zeros((8, 8, 3)))
    (folder / "none").mkdir()
    return folder


def write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


def test_two_processes_share_and_end_alike(folder: Path) -> None:
    said = run_ring(Path(__file__).with_name("sharing_verb.py"), 2, folder)
    assert [each.code for each in said] == [0, 0], "\n".join(each.err for each in said)
    codes = {"none": 2, "other": 2, "broken": 2, "team": 2, "in place": 2}
    assert [json.loads(each.out.splitlines()[-1]) for each in said] == [codes, codes]
    first, second = (each.err.splitlines() for each in said)
    bad = [line for line in first if "f.bmp" in line]
    assert len(bad) == 3, "of what all processes see, the first speaks, in each part that came so far"
    assert [line for line in first if line not in bad] == [
        f"pixdec: {folder}/none: no images in this folder; looked for {readable()}",
        "pixdec: the processes found different inputs; all, on every machine, must see the same files",
    ]
    assert second == ["pixdec: no room on the disk"]

    made = [[json.loads(line) for line in each.out.splitlines()[:-1]] for each in said]
    names = {
        part: [[each["input"] for each in lines if each.get("part") == part] for lines in made]
        for part in ("other", "broken", "team", "in place")
    }
    fair = [["a.bmp", "b.bmp", "e.bmp"], ["c.bmp", "d.bmp"]]  # 1364 and 1330 pixels
    assert names == {
        "other": [[], []],
        "broken": [fair[0], []],  # nothing by the second, and all by the first
        "team": [list(SIZES), []],  # by both, and the first speaks for them
        "in place": fair,
    }
    for part in ("team", "pictures"):
        for name in SIZES:
            before = np.asarray(Image.open(folder / "pictures" / name)).astype(int)
            after = np.asarray(Image.open(folder / part / name.replace("bmp", "png"))).astype(int)
            assert abs(before + after - 255).max() <= 1, (part, name)


def readable() -> str:
    from pixdec.io.images import READABLE

    return ", ".join(sorted(READABLE))
