import pytest
import torch

from pixdec.models.taef2 import TAEF2
from pixdec.models.tiny_vae import TinyVAE
from pixdec.train.loop import LoopSettings, new_state, train
from scripts import train_tiny
from trainset import TINY, pictures

LOOP = LoopSettings(steps=20, batch=4, learning_rate=2e-3, warmup=2, seed=3)
GOLDEN_AUTOENCODER = (-0.5989, -0.7709)


def test_autoencoder_golden_losses():
    torch.manual_seed(0)
    network, teacher = TinyVAE(TINY), TAEF2().requires_grad_(False)
    state = new_state({"autoencoder": network}, LOOP)
    losses = [
        progress.losses["total"]
        for progress in train(state, lambda i, _: train_tiny.losses(network, teacher, pictures(i, 32), 1.0, 0.5), LOOP)
    ]
    assert len(losses) == 20
    assert losses[0] == pytest.approx(GOLDEN_AUTOENCODER[0], rel=1e-3)
    assert losses[-1] == pytest.approx(GOLDEN_AUTOENCODER[1], rel=2e-2)
