"""`ImageEncoder` with the bundled encoder and with a real, small diffusers VAE."""

from pathlib import Path

import pytest
import torch

from pixdec.encoder import ImageEncoder
from pixdec.models.tiny_vae import unpack


def test_bundled_encoder():
    encoder = ImageEncoder.from_pretrained()
    coarse = torch.rand(1, 3, 3, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    smooth = torch.nn.functional.interpolate(coarse, (64, 96), mode="bicubic")
    latent = encoder.encode(smooth)
    assert latent.tensor.shape == (1, 128, 4, 6)
    assert latent.space.name == "flux2"
    assert latent.sigma.tolist() == [0.0]
    with torch.no_grad():
        back = encoder.vae.decoder(unpack(latent.tensor))
    assert (back - smooth).abs().mean() < 0.1
    with pytest.raises(ValueError, match="multiples of 16"):
        encoder.encode(torch.zeros(1, 3, 40, 64))


def test_spaces_without_an_encoder():
    with pytest.raises(ValueError, match="no bundled encoder for sdxl"):
        ImageEncoder.from_pretrained("sdxl")
    with pytest.raises(ValueError, match="vision encoder"):
        ImageEncoder.from_pretrained("dinov2", "somewhere")


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_diffusers_vae(tmp_path: Path, subfolder: str):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    vae.save_pretrained(tmp_path / subfolder)
    encoder = ImageEncoder.from_pretrained("flux1", tmp_path)
    images = torch.rand(2, 3, 32, 48) * 2 - 1
    with torch.no_grad():
        raw = vae.eval().encode(images).latent_dist.mode()
    latent = encoder.encode(images)
    assert torch.allclose(latent.tensor, (raw - 0.1159) * 0.3611, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(encoder.decode(latent.tensor), vae.decode(raw).sample, atol=1e-5)
    with pytest.raises(ValueError, match="16 channels, those of sdxl 4"):
        ImageEncoder.from_pretrained("sdxl", tmp_path)


def test_a_folder_without_a_vae_is_one_line(tmp_path: Path):
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match="no AutoencoderKL or AutoencoderTiny can be loaded") as refused:
        ImageEncoder.from_pretrained("flux1", tmp_path)
    assert "\n" not in str(refused.value)
