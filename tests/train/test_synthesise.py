"""Prompts x seeds -> shards: resumed to the image, read by training, and made on a Ray cluster."""

import errno
import io
import json
import os
import sys
import tarfile
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load

from pixdec.cli import main
from pixdec.generation.prompts import Prompt
from pixdec.generation.settings import SynthesisSettings
from pixdec.train.data.shards import read_index, read_shard
from pixdec.train.synthesise import synthesise

PROMPTS = [Prompt(f"scene {i}", f"list:{i + 1}", seed=7 if i == 2 else None) for i in range(5)]
SETTINGS = SynthesisSettings(seed=100, images_per_prompt=2, shard=4)
FACTS = {"name": "drawn", "steps": 3}


class Drawn:
    """Noise by its seed. With a folder it notes each image, and the first process to be given "scene 1" dies."""

    name = "drawn"

    def __init__(self, notes: str | None = None) -> None:
        self.notes = notes

    def images(self, prompts, seeds):
        if self.notes is not None:
            died = Path(self.notes) / "died"
            if "scene 1" in prompts and not died.exists():
                died.touch()
                os._exit(1)
            for prompt, seed in zip(prompts, seeds, strict=True):
                (Path(self.notes) / f"{prompt} {seed} {os.getpid()}").touch()
        return [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), np.uint8)) for seed in seeds]

    def embed(self, prompts):
        return [torch.full((len(prompt) % 4 + 1, 8), float(len(prompt))) for prompt in prompts]


def tars(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard-*.tar"))}


def test_every_image_has_its_prompt_seed_and_embedding(tmp_path: Path):
    seen = list(synthesise(PROMPTS, tmp_path, Drawn, FACTS, SETTINGS))
    assert seen == [(i, 10) for i in range(11)]
    index = read_index(tmp_path)
    assert [len(shard.sizes) for shard in index.shards] == [4, 4, 2]
    assert (index.images, index.embeddings) == (10, "drawn")
    found = [raw for shard in index.shards for _, raw in read_shard(shard.url)]
    notes = [json.loads(raw.members["json"]) for raw in found]
    assert [note["seed"] for note in notes] == [100, 101, 1100, 1101, 7, 8, 3100, 3101, 4100, 4101]
    assert [note["captions"]["text"] for note in notes][::2] == [each.text for each in PROMPTS]
    assert notes[0]["source"] == FACTS
    image = np.asarray(Image.open(io.BytesIO(found[4].members["png"])))
    assert np.array_equal(image, np.asarray(Drawn().images([""], [7])[0]))
    assert load(found[0].members["safetensors"])["embedding.text"].shape == (4, 8)
    assert not list((tmp_path / ".parts").iterdir())
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        assert len(tar.getnames()) == 12


def test_a_run_that_ended_goes_on_with_the_next_image(tmp_path: Path):
    list(synthesise(PROMPTS, tmp_path / "whole", Drawn, FACTS, SETTINGS))
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "died").touch()
    opened = partial(Drawn, str(notes))
    for first in (3, 6, 11):  # within a shard, and at the end of one
        list(islice(synthesise(PROMPTS, tmp_path / "parts", opened, FACTS, SETTINGS), first))
    assert list(synthesise(PROMPTS, tmp_path / "parts", opened, FACTS, SETTINGS)) == [(10, 10)]
    assert tars(tmp_path / "parts") == tars(tmp_path / "whole")
    assert len(list(notes.iterdir())) == 11  # nothing was made twice
    batched = SynthesisSettings(seed=100, images_per_prompt=2, shard=4, batch=3)
    list(synthesise(PROMPTS, tmp_path / "batched", Drawn, FACTS, batched))
    assert tars(tmp_path / "batched") == tars(tmp_path / "whole")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write, count = Path.write_bytes, 0

    def full(path: Path, data: bytes) -> int:
        nonlocal count
        count += path.suffix == ".tar"
        if count == 6 and path.suffix == ".tar":
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", full)
        with pytest.raises(OSError, match="No space left"):
            list(synthesise(PROMPTS, tmp_path, Drawn, FACTS, SETTINGS))
    assert next(synthesise(PROMPTS, tmp_path, Drawn, FACTS, SETTINGS)) == (5, 10)
    list(synthesise(PROMPTS, tmp_path, Drawn, FACTS, SETTINGS))
    list(synthesise(PROMPTS, tmp_path / "whole", Drawn, FACTS, SETTINGS))
    assert tars(tmp_path) == tars(tmp_path / "whole")


def test_what_cannot_be_is_one_line(tmp_path: Path, capsys):
    list(synthesise(PROMPTS, tmp_path / "a", Drawn, FACTS, SETTINGS))
    with pytest.raises(ValueError, match=r"holds shards of something else .*steps"):
        list(synthesise(PROMPTS, tmp_path / "a", Drawn, {**FACTS, "steps": 4}, SETTINGS))
    with pytest.raises(ValueError, match=r"holds shards of something else .*prompts"):
        list(synthesise(PROMPTS, tmp_path / "a", Drawn, FACTS, SynthesisSettings(1, 2, 4)))
    (tmp_path / "p.txt").write_text("a fox\na hen\na fox\n")
    given = ["l2p", "synthesise", str(tmp_path / "none"), "--prompts", str(tmp_path / "p.txt"), "-o"]
    assert main([*given, str(tmp_path / "b")]) == 2
    (tmp_path / "p.txt").write_text("a fox\na hen\n")
    assert main([*given, str(tmp_path / "c")]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 2
    assert "p.txt:3" in told[0]
    assert str(tmp_path / "none") in told[1]


def test_a_ray_cluster_makes_the_same_and_what_a_killed_worker_had_in_hand_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ray = pytest.importorskip("ray", reason="needs ray")
    notes = tmp_path / "notes"
    notes.mkdir()
    monkeypatch.setenv("RAY_worker_niceness", "0")  # on a busy machine they would wait for long
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        seen = list(synthesise(PROMPTS, tmp_path / "ray", partial(Drawn, str(notes)), FACTS, SETTINGS, "local"))
    finally:
        ray.shutdown()
    assert seen == [(i, 10) for i in range(11)]
    made = [each.name.rpartition(" ") for each in notes.iterdir() if each.name != "died"]
    assert len(made) == 10  # nothing was made twice
    assert (notes / "died").exists()
    list(synthesise(PROMPTS, tmp_path / "here", Drawn, FACTS, SETTINGS))
    assert tars(tmp_path / "ray") == tars(tmp_path / "here")
