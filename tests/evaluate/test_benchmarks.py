"""Benchmarks' prompts are read, and their images laid out as the official scorers read them."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixdec.evaluate.benchmarks import make_images, read_items

LINES = [
    '{"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"}',
    '{"tag": "counting", "include": [{"class": "clock", "count": 2}], "prompt": "a photo of two clocks"}',
]


class Gray:
    """Gray by the seed."""

    name = "gray"

    def __init__(self) -> None:
        self.asked = list[tuple[str, int]]()

    def images(self, prompts, seeds):
        self.asked += zip(prompts, seeds, strict=True)
        return [Image.new("RGB", (8, 8), (seed % 256,) * 3) for seed in seeds]

    def embed(self, prompts):
        raise NotImplementedError


def test_geneval(tmp_path: Path):
    (tmp_path / "meta.jsonl").write_text("\n".join(LINES) + "\n")
    items = read_items("geneval", tmp_path / "meta.jsonl")
    source, out = Gray(), tmp_path / "out"
    assert list(make_images("geneval", items, source, out, seed=5)) == items
    assert [json.loads((out / name / "metadata.jsonl").read_text()) for name in ("00000", "00001")] == [
        json.loads(line) for line in LINES
    ]
    assert sorted(each.name for each in (out / "00001" / "samples").iterdir()) == [f"000{k}.png" for k in range(4)]
    assert source.asked[4:] == [("a photo of two clocks", 1005 + k) for k in range(4)]
    (out / "00001" / "samples" / "0002.png").unlink()
    list(make_images("geneval", items, source, out, seed=5))
    assert len(source.asked) == 12


def test_dpg(tmp_path: Path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "partiprompts2.txt").write_text("two tall giraffes\n")
    rows = (
        "item_id,text,keywords,proposition_id\npartiprompts2,two tall giraffes,,1\npartiprompts2,two tall giraffes,,2\n"
    )
    (tmp_path / "dpg_bench.csv").write_text(rows)
    items = read_items("dpg", tmp_path / "dpg_bench.csv")
    assert items == read_items("dpg", tmp_path / "prompts")
    source = Gray()
    for _ in range(2):
        assert list(make_images("dpg", items, source, tmp_path / "out", seed=10)) == items
    assert len(source.asked) == 4
    sheet = np.asarray(Image.open(tmp_path / "out" / "partiprompts2.png"))[:, :, 0]
    assert sheet.shape == (16, 16)
    assert sheet[::8, ::8].tolist() == [[10, 11], [12, 13]]


def test_what_is_no_prompt_file(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "x"}\n{"tag": 1}\n')
    (tmp_path / "a.csv").write_text("id,text\n1,x\n")
    (tmp_path / "empty").mkdir()
    for kind, name, told in (
        ("geneval", "a.jsonl", "a.jsonl:2"),
        ("dpg", "a.csv", "item_id"),
        ("dpg", "empty", "no prompt"),
        ("geneval", "none.jsonl", "cannot be read"),
    ):
        with pytest.raises(ValueError, match=told):
            read_items(kind, tmp_path / name)
