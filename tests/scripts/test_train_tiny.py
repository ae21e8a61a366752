"""The training of the bundled autoencoder: golden losses, and the crops that it is shown."""

import gc
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.io.images import read_image
from pixdec.models.taef2 import TAEF2
from pixdec.models.tiny_vae import TinyVAE
from pixdec.train.checkpoints import State
from pixdec.train.loop import LoopSettings, train
from scripts import train_tiny
from scripts.photos import CropSettings, Photos, ahead
from shardset import photograph
from trainset import TINY, pictures

LOOP = LoopSettings(steps=20, batch=4, learning_rate=2e-3, warmup=2, seed=3)
GOLDEN_AUTOENCODER = (-0.5989, -0.7709)


def test_autoencoder_golden_losses():
    torch.manual_seed(0)
    network, teacher = TinyVAE(TINY), TAEF2().requires_grad_(False)
    state = State({"autoencoder": network}, LOOP)
    losses = [
        progress.losses["total"]
        for progress in train(state, lambda i, _: train_tiny.losses(network, teacher, pictures(i, 32), 1.0, 0.5), LOOP)
    ]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(GOLDEN_AUTOENCODER[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_AUTOENCODER[1], rel=2e-2)


def test_crops_depend_on_seed_and_index_alone(tmp_path: Path):
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(tmp_path / f"{i}.png")
    settings = CropSettings(size=32, synthetic=0.3)
    one, two = Photos(tmp_path), Photos(tmp_path)
    batch = one.batch(settings, 5, 7, 6)
    one.batch(settings, 5, 8, 6)
    assert torch.equal(batch, two.batch(settings, 5, 7, 6))
    assert not torch.equal(batch, two.batch(settings, 6, 7, 6))
    assert batch.shape == (6, 3, 32, 32)
    assert batch.min() >= -1
    assert batch.max() <= 1
    with pytest.raises(ValueError, match="png: an image of 100x80 is smaller than its bucket of 128x128"):
        one.batch(CropSettings(size=128, synthetic=0), 0, 0, 1)


def test_when_no_picture_can_be_read_it_stops(tmp_path: Path):
    for i in range(2):
        path = photograph(tmp_path / f"{i}.jpg", 80, 80, seed=i)
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no picture can be read"):
        Photos(tmp_path).batch(CropSettings(size=64, synthetic=0), 0, 0, 4)


def test_few_pictures_are_held_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for i in range(6):
        photograph(tmp_path / f"{i}.png", 100, 100, seed=i)
    photos = Photos(tmp_path, cache=2 * 3 * 100 * 100)
    held = list[weakref.ref[Image.Image]]()

    def remembered(path: Path) -> Image.Image:
        held.append(weakref.ref(image := read_image(path)))
        return image

    monkeypatch.setattr("scripts.photos.read_image", remembered)
    photos.batch(CropSettings(size=64, synthetic=0), 0, 0, 20)
    gc.collect()
    assert len(held) > 6
    assert sum(image() is not None for image in held) == 2


def test_batches_made_ahead_are_the_same():
    made: list[int] = []

    def make(step: int) -> int:
        made.append(step)
        if step == 9:
            raise ValueError("no more")
        return 10 * step

    take = ahead(make)
    assert [take(step) for step in (3, 4, 5, 8)] == [30, 40, 50, 80]
    assert made[:3] == [3, 4, 5]
    with pytest.raises(ValueError, match="no more"):
        take(9)
