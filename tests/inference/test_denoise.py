"""The steps of one batch: which noise levels, which sampler, and that they see the whole image."""

import dataclasses
from pathlib import Path

import pytest
import torch

from battery import randomised
from pixdec.inference.denoise import TEACHER_STEPS, denoised, is_distilled, times_for
from pixdec.inference.runner import Arrangement
from pixdec.models.adapter import AdapterSettings
from pixdec.models.pid import PiD, PiDSettings
from pixdec.models.pixdit import PixDiTSettings
from pixdec.sampling.samplers import NoiseSource, student
from pixdec.sampling.tiling import Tiling
from pixdec.weights.load import LoadedDecoder, load_decoder, save_decoder

SETTINGS = PiDSettings(
    PixDiTSettings(hidden=24, heads=2, depth=1, pixel_width=4, pixel_hidden=16, pixel_heads=2, text_width=None),
    AdapterSettings(width=8, blocks=1),
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LoadedDecoder:
    path: Path = tmp_path_factory.mktemp("model") / "m.safetensors"
    network = randomised(PiD(SETTINGS).initialise())
    save_decoder(network, path, name="m", space="flux1", version="v1", licence="Apache-2.0")
    return load_decoder(path)


def test_levels_are_the_students_own_or_follow_the_size_a_teacher_sees(model: LoadedDecoder):
    assert times_for(model, None, 64, 64) == times_for(model, 4, 999, 1) == list(model.times)
    assert is_distilled(model)
    with pytest.raises(ValueError, match="steps=5"):
        times_for(model, 5, 64, 64)
    teacher = dataclasses.replace(model, kind="teacher", times=())
    assert not is_distilled(teacher)
    assert len(times_for(teacher, None, 64, 64)) == TEACHER_STEPS + 1
    assert times_for(teacher, 3, 2048, 2048)[1] > times_for(teacher, 3, 1024, 1024)[1]


@torch.no_grad()
def test_the_steps_are_the_samplers_on_the_networks_velocity(model: LoadedDecoder):
    network, latent, sigma = model.network, torch.randn(2, 16, 2, 3), torch.tensor([0.0, 0.5])
    given = {"latent": latent, "sigma": sigma, "text": None, "negative": None, "seeds": [3, 4], "size": (64, 96)}
    made = list(denoised(network, **given, guidance=None, times=model.times, arranged=Arrangement()))
    by_hand = student(
        lambda x, t: network(x, t, None, latent, sigma), NoiseSource([3, 4], latent.device), (2, 3, 64, 96), model.times
    )
    assert all(torch.allclose(a.x0, b.x0, atol=1e-5) for a, b in zip(made, by_hand, strict=True))

    one_tile = Tiling(64, 96, side=96, overlap=16, patch=16)
    tiled = list(denoised(network, **given, guidance=None, times=model.times, arranged=Arrangement(one_tile)))
    assert torch.allclose(tiled[-1].x0, made[-1].x0, atol=1e-5)

    guided = [
        list(denoised(network, **given, guidance=g, times=[0.9, 0.5, 0.0], arranged=Arrangement())) for g in (1.0, 5.0)
    ]
    assert torch.allclose(guided[0][-1].x0, guided[1][-1].x0, atol=1e-4), "away from the same text leads nowhere"
