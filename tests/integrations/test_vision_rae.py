"""Latents to and from diffusers' `AutoencoderRAE`: the real class, one layer deep, with random statistics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from vision_tiny import dinov2, images, mean_and_variance, noise, shaken

from pixdec.integrations.vision import VisionEncoder, latents_from_rae, latents_to_rae, read_statistics
from pixdec.latents import Latent, Statistics, get_space

diffusers = pytest.importorskip("diffusers")
if not hasattr(diffusers, "AutoencoderRAE"):
    pytest.skip("this diffusers has no AutoencoderRAE", allow_module_level=True)


def make(**other: Any) -> Any:
    settings = {
        "encoder_num_hidden_layers": 1,
        "encoder_input_size": 448,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 16,
        **other,
    }
    return shaken(diffusers.AutoencoderRAE(**settings))


def with_statistics(rae: Any) -> Any:
    """As diffusers' conversion of the published RAE sets them: std = sqrt(var + 1e-5)."""
    mean, variance = mean_and_variance()
    rae._latents_mean, rae._latents_std = mean.clone(), (variance + 1e-5).sqrt()
    return rae


@pytest.fixture(scope="module")
def rae() -> Any:
    return with_statistics(make())


@pytest.mark.parametrize("side", [512, 448, 96])
@torch.no_grad()
def test_our_latent_is_the_raes(rae: Any, side: int):
    pictures = images(1, side)
    theirs = rae.encode((pictures + 1) / 2).latent
    encoder = VisionEncoder("dinov2", rae.encoder, Statistics.from_vae(rae))
    ours = encoder.encode(pictures)
    torch.testing.assert_close(ours.tensor, theirs, atol=1e-4, rtol=1e-4)
    taken = latents_from_rae(theirs, rae)
    assert taken.space.name == "dinov2"
    assert torch.equal(taken.tensor, theirs)  # the same latents: nothing is computed


@torch.no_grad()
def test_the_published_statistics_and_the_raes_agree(rae: Any):
    """sqrt(var + 1e-5) beside sqrt(var + 1e-5) + 1e-5, a difference of 1e-5."""
    published = Statistics.from_variance(*mean_and_variance(), eps=1e-5)
    pictures = images(1, 448)
    ours = VisionEncoder("dinov2", rae.encoder, published).encode(pictures).tensor
    theirs = rae.encode((pictures + 1) / 2).latent
    assert 0 < (ours - theirs).abs().max() < 1e-3


@torch.no_grad()
def test_the_rae_decodes_our_latent(rae: Any):
    pictures = images(2, 512)
    latent = VisionEncoder("dinov2", rae.encoder, Statistics.from_vae(rae)).encode(pictures)
    given = latents_to_rae(latent, rae)
    picture = rae.decode(given).sample
    assert picture.shape == (2, 3, 512, 512)
    expected = rae.decode(rae.encode((pictures + 1) / 2).latent).sample
    torch.testing.assert_close(picture, expected, atol=1e-3, rtol=1e-3)
    assert (picture[0] - picture[1]).abs().mean() > 1e-3
    assert torch.equal(latents_from_rae(given, rae).tensor, latent.tensor)


@torch.no_grad()
def test_a_scaled_rae():
    scaled = with_statistics(make(scaling_factor=0.5))
    pictures = images(1, 448)
    theirs = scaled.encode((pictures + 1) / 2).latent
    ours = VisionEncoder("dinov2", scaled.encoder, Statistics.from_vae(scaled)).encode(pictures)
    torch.testing.assert_close(latents_from_rae(theirs, scaled).tensor, ours.tensor, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(latents_to_rae(ours, scaled), theirs, atol=1e-4, rtol=1e-4)
    refused(lambda: latents_from_rae(theirs, scaled, 0.2), "noisy latents of an RAE with scaling_factor=0.5")


def test_sigma_travels_with_the_latent(rae: Any):
    assert latents_from_rae(noise(2, 768, 32, 32), rae, [0.0, 0.25]).sigma.tolist() == [0.0, 0.25]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_type": "mae", "encoder_patch_size": 16}, "an RAE of mae, 768 channels: expected"),
        ({"encoder_hidden_size": 384}, "an RAE of dinov2, 384 channels: expected"),
        ({"encoder_input_size": 224}, r"a grid of 16x16; expected 32x32.*encoder_input_size=448"),
        ({"reshape_to_2d": False}, "reshape_to_2d=False"),
        ({}, "carries no latent statistics"),
    ],
    ids=["mae", "width", "grid", "tokens", "no-statistics"],
)
def test_other_raes(settings: dict[str, Any], message: str):
    other, latent = make(**settings), noise(1, 768, 32, 32)
    refused(lambda: latents_from_rae(latent, other), message)
    refused(lambda: latents_to_rae(Latent(latent, get_space("dinov2")), other), message)


def test_other_latents(rae: Any):
    refused(lambda: latents_from_rae(noise(1, 768, 16, 16), rae), "grid of 16x16; expected 32x32")
    refused(lambda: latents_from_rae(noise(1, 1024, 768), rae), r"unpack\(latent, height, width\)")
    refused(lambda: latents_to_rae(Latent(noise(1, 1152, 16, 16), get_space("siglip")), rae), "a latent of siglip")
    refused(lambda: latents_to_rae(Latent(noise(1, 768, 16, 16), get_space("dinov2")), rae), "grid of 16x16")
    refused(lambda: latents_from_rae(noise(1, 768, 32, 32), dinov2()), "an RAE Dinov2WithRegistersModel")


def test_diffusers_has_no_rae_of_so400m():
    """Why there is no conversion for "siglip": if this fails, diffusers may have one by now."""
    siglip: dict[str, Any] = {"encoder_type": "siglip2", "encoder_hidden_size": 1152, "encoder_input_size": 224}
    try:
        made = make(**siglip)
    except AttributeError:  # with transformers 5, whose SiglipVisionModel has no vision_model
        return
    positions = made.encoder.vision_model.embeddings.position_embedding.weight
    assert positions.shape[0] != 16 * 16


def test_statistics_from_files(rae: Any, tmp_path: Path):
    mean, variance = mean_and_variance()
    torch.save({"mean": mean, "var": variance}, tmp_path / "stat.pt")
    save_file({"mean": mean[None], "var": variance[None]}, tmp_path / "stat.safetensors")
    rae.save_pretrained(tmp_path / "rae")
    for path in (tmp_path / "stat.pt", tmp_path / "stat.safetensors"):
        read = read_statistics(path)
        assert torch.equal(read.mean, mean)
        assert torch.equal(read.std, (variance + 1e-5).sqrt())
    for path in (tmp_path / "rae", tmp_path / "rae" / "diffusion_pytorch_model.safetensors"):
        read, held = read_statistics(path), Statistics.from_vae(rae)
        assert torch.equal(read.mean, held.mean)
        assert torch.equal(read.std, held.std)


def test_files_without_statistics(tmp_path: Path):
    save_file({"mean": torch.zeros(3), "std": torch.ones(3)}, tmp_path / "other.safetensors")
    refused(lambda: read_statistics(tmp_path / "other.safetensors"), r"no latent statistics.*found mean, std")
    plain = {"_latents_mean": torch.zeros(1), "_latents_std": torch.ones(1)}
    save_file(plain, tmp_path / "plain.safetensors")
    refused(lambda: read_statistics(tmp_path / "plain.safetensors"), "no latent statistics")
    refused(lambda: read_statistics(tmp_path / "none.pt"), "no such file")


def refused(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
