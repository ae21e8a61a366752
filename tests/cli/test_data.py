"""pixdec data pack, index: folders of images become shards that the loader reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pixdec.encoder import ImageEncoder
from pixdec.train.data.degrade import degrade
from pixdec.train.data.fit import CENTER
from pixdec.train.data.shards import read_index
from pixdec.train.data.stream import StreamLoader, StreamSettings

Run = Callable[..., Any]


@pytest.fixture
def pictures(tmp_path: Path, photo: Callable[..., Path]) -> Path:
    """Four photographs with a caption for the first, one that is broken, and one that is there twice."""
    folder = tmp_path / "in"
    for i in range(4):
        photo(folder / f"{i}.png", 96, 80, seed=i)
    (folder / "0.txt").write_text("a garden")
    (folder / "broken.jpg").write_bytes(b"hello")
    (folder / "twice.png").write_bytes((folder / "2.png").read_bytes())
    return folder


def test_pack(run: Run, pictures: Path, tmp_path: Path) -> None:
    outcome = run("data", "pack", pictures, "-o", tmp_path / "out", "--shard-mb", 0.005)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")  # silent in a pipe
    index = read_index(tmp_path / "out")
    assert index.images == 4
    assert len(index.shards) >= 2
    lines = [json.loads(line) for line in (tmp_path / "out" / "report.jsonl").read_text().splitlines()]
    assert [(line["source"], line["reason"]) for line in lines] == [
        ("broken.jpg", "broken"),
        ("twice.png", "duplicate"),
    ]
    source = StreamLoader(tmp_path / "out", StreamSettings(base=64, multiple=16, batch=2))
    captions = [caption for batch in islice(source, 2) for caption in batch.captions]
    assert sorted(captions) == ["", "", "", "a garden"]


def test_pack_says_what_it_did_to_machines(run: Run, pictures: Path, tmp_path: Path) -> None:
    arguments = ("data", "pack", pictures, pictures / "0.png", "-o", tmp_path / "out", "--min-side", 80, "--json")
    expected = {
        "output": str(tmp_path / "out"),
        "shards": 1,
        "images": 4,
        "left_out": {"broken": 1, "duplicate": 2},
    }
    assert run(*arguments).records == [expected]
    assert run(*arguments).records == [expected]  # nothing left to do


def test_pack_to_a_terminal(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    outcome = run("data", "pack", pictures, "-o", tmp_path / "out", "--no-captions")
    assert "0/6" in outcome.err  # the bar, which is gone at the end
    assert "4 images in 1 shards; left out: 1 broken, 1 duplicate (report.jsonl)" in outcome.out


def test_pack_with_latents(run: Run, pictures: Path, tmp_path: Path) -> None:
    arguments = ("data", "pack", pictures, "-o", tmp_path / "out", "--latents", "tiny", "--base", 32, "--scale", 2)
    run(*arguments).refused("--base 32", "at least 64")
    Image.new("RGB", (130, 130), "navy").save(pictures / "large.png")
    outcome = run(*arguments[:-4], "--base", 128, "--scale", 2, "--json")
    assert outcome.records[0]["left_out"] == {"broken": 1, "latent": 5}
    facts = {"base": 128, "multiple": 64, "scale": 2, "space": "flux2", "encoder": "pixdec-tiny"}
    assert read_index(tmp_path / "out").latents == facts
    settings = StreamSettings(base=128, batch=1, fit=CENTER, latents=True)
    batch = next(iter(StreamLoader(tmp_path / "out", settings)))
    assert batch.latents is not None
    assert torch.equal(batch.latents, ImageEncoder.from_pretrained().encode(degrade(batch.images, 2)).tensor)


def test_pack_refuses(run: Run, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    out = ("-o", tmp_path / "out")
    run("data", "pack", tmp_path / "empty", *out).refused("empty: no images in this folder", ".jpg")
    run("data", "pack", tmp_path / "absent", *out).refused("absent", "no such file or folder")
    run("data", "pack", pictures).refused("--output OUT", "pixdec data --help")
    run("data", "pack", *out).refused("no input")
    run("data", "pack", pictures, *out, "--min-side", 81).refused("none of 6 images", "0.png: small, 96x80")
    run("data", "pack", pictures, *out, "--latents", "tiny", "--space", "sdxl").refused("no bundled encoder for sdxl")
    run("data", "pack", pictures, *out, "--latents", "tiny", "--scale", 8).refused("--scale 8", "divisor of 4")
    run("data", "pack", pictures, *out, "--latents", "tiny", "--space", "vae").refused("unknown latent space 'vae'")
    run("data", "pack", pictures, *out, "--embeddings", tmp_path / "empty").refused("empty")
    run("data", "pack", pictures, "-o", pictures / "0.png").refused("0.png")
    run("data", "unpack").refused("unpack")
    assert not (tmp_path / "out" / "index.jsonl").exists()


def test_pack_into_a_packing_of_something_else(run: Run, pictures: Path, tmp_path: Path) -> None:
    assert run("data", "pack", pictures, "-o", tmp_path / "out").code == 0
    run("data", "pack", pictures, "-o", tmp_path / "out", "--near", 4).refused("something else (near differ)")


def test_index(run: Run, pictures: Path, tmp_path: Path) -> None:
    run("data", "pack", pictures, "-o", tmp_path / "out", "--shard-mb", 0.005)
    written = (tmp_path / "out" / "index.jsonl").read_bytes()
    names = [shard.name for shard in read_index(tmp_path / "out").shards]
    last = len(names) - 1
    braces = f"{tmp_path}/out/shard-{{000000..{last:06}}}.tar"
    outcome = run("data", "index", braces, "-o", tmp_path / "out" / "index.jsonl", "--json")
    assert outcome.code == 0
    assert [record["unreadable"] for record in outcome.records] == [0] * len(names)
    assert (tmp_path / "out" / "index.jsonl").read_bytes() == written
    elsewhere = tmp_path / "else" / "where.jsonl"
    assert run("data", "index", braces, "-o", elsewhere).code == 0
    assert read_index(elsewhere).shards[0].url == (tmp_path / "out" / names[0]).as_uri()
    assert StreamLoader(elsewhere, StreamSettings(base=64, multiple=16, batch=2)).images == 4


def test_index_refuses(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello")
    run("data", "index", tmp_path / "text.tar", "-o", tmp_path / "index.json").refused("index.json", ".jsonl")
    outcome = run("data", "index", tmp_path / "text.tar", tmp_path / "no.tar", "-o", tmp_path / "index.jsonl")
    assert outcome.code == 2
    first, second, whole = outcome.err.splitlines()
    assert "text.tar: the shard cannot be read" in first
    assert "no.tar: the shard cannot be read (No such file or directory)" in second
    assert "2 of 2 shards cannot be indexed; nothing is written" in whole
    assert not (tmp_path / "index.jsonl").exists()
