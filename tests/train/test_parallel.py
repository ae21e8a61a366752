"""Two gloo processes train as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pixdec.train.parallel import Share

SCRIPT = """
import sys, torch
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.models.tiny_vae import TinyVAE, TinyVAESettings
from pixdec.train import decoder
from pixdec.train.loop import LoopSettings, Run, generator_at, train
from pixdec.train.parallel import join

torch.set_num_threads(1)
share = join()
sizes, depths = (8, 8, 16), (0, 1, 1)
base = TinyVAESettings(encoder_widths=sizes, decoder_widths=sizes, encoder_depths=depths, decoder_depths=depths)
backbone = PixDiTSettings(
    patch=8, hidden=24, heads=2, depth=2, pixel_width=4, pixel_hidden=24, pixel_heads=2, pixel_depth=1, text_width=None,
    in_channels=6, rope_stride=1.0, pixel_positions="patch", window=4,
)
adapter = AdapterSettings(128, latent_factor=16, width=8, blocks=1, unpack=2, gate="token", pixel_head=True)
recipe = decoder.DecoderRecipe(
    network=PiDSettings(backbone, adapter, prediction="residual", base=base),
    loop=LoopSettings(steps=4, batch=4, learning_rate=2e-3, warmup=2),
)
torch.manual_seed(0)
tinies = [TinyVAE(base).requires_grad_(False) for _ in range(2)]
network = PiD(recipe.network).initialise(0)
places = share.places(4)

def losses_at(step):
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(step)) * 2 - 1
    encoders = [tiny.encoder for tiny in tinies]
    return decoder.losses(network, encoders, images[places.start:places.stop], recipe, generator_at(0, step), places)

norms = [progress.gradient_norm for progress in train(Run(network, recipe.loop), losses_at, recipe.loop)]
if share.rank == 0:
    torch.save({"norms": norms, "weights": network.state_dict()}, sys.argv[1])
"""


def run(processes: int, path: Path) -> dict:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ring = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env={**os.environ, **ring, "RANK": str(rank)})
        for rank in range(processes)
    ]
    assert [process.wait(timeout=300) for process in started] == [0] * processes
    return torch.load(path, weights_only=True)


def test_two_processes_take_the_trajectory_of_one(tmp_path: Path):
    one, two = run(1, tmp_path / "one.pt"), run(2, tmp_path / "two.pt")
    assert len(one["norms"]) == 4
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    for name, weights in one["weights"].items():
        assert torch.allclose(two["weights"][name], weights, rtol=1e-4, atol=1e-5), name


def test_a_batch_is_shared_evenly_or_not_at_all():
    assert [list(Share(rank, 2).places(4)) for rank in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match="a batch of 4 on 3 processes"):
        Share(0, 3).places(4)
