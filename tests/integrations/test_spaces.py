"""The latent space is read off the VAE, and a VAE that is not what it seems is refused before anything runs."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import tiny
import torch
from cases import ALL, BY_NAME, STOP, Case, denoiser

from pixdec.integrations.diffusers import capture
from pixdec.integrations.diffusers.spaces import normalized, space_of
from pixdec.latents import get_space


@pytest.mark.parametrize("case", ALL, ids=str)
def test_the_space_is_read_off_the_vae(case: Case):
    assert space_of(case.build()).name == case.space


def refusal(pipe: Any, case: Case, **changes: Any) -> str:
    """The one line of a refusal that comes before the denoiser is called."""
    calls: list[int] = []
    hook = denoiser(pipe).register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError) as refused:
        capture(pipe, stop_after=STOP, **case.run_arguments(**changes))
    hook.remove()
    assert not calls
    assert "\n" not in str(refused.value)
    return str(refused.value)


def with_vae(name: str, vae: Any) -> Any:
    pipe = BY_NAME[name].build()
    pipe.vae = vae
    return pipe


@pytest.mark.parametrize(
    ("name", "vae", "message"),
    [
        ("sdxl", lambda: tiny.vae_kl(4, 0.18215, None), "Stable Diffusion 1 and 2"),
        ("flux", lambda: tiny.vae_kl(16, 0.5, 0.1), "(16, 0.5, 0.1)"),
        ("flux", lambda: tiny.vae_kl(8, 0.3611, 0.1159), "(8, 0.3611, 0.1159)"),
        ("sd3", lambda: diffusers.AutoencoderTiny(latent_channels=16), "AutoencoderTiny is none of AutoencoderKL"),
    ],
)
def test_unknown_vaes(name: str, vae: Any, message: str):
    assert message in refusal(with_vae(name, vae()), BY_NAME[name])


def test_sdxl_vae_with_statistics_of_its_own():
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8,),
        norm_num_groups=4,
        scaling_factor=0.13025,
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    assert "latents_mean" in refusal(with_vae("sdxl", vae), BY_NAME["sdxl"])


def test_factor():
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=16,
        norm_num_groups=4,
        scaling_factor=0.3611,
        shift_factor=0.1159,
    )
    assert "1/2 of the image's side, those of flux1 are at 1/8" in refusal(with_vae("flux", vae), BY_NAME["flux"])


def flux2_vae(mean: float, variance: float) -> Any:
    vae = diffusers.AutoencoderKLFlux2(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    vae.bn.running_mean.fill_(mean)
    vae.bn.running_var.fill_(variance)
    return vae


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [(0.0, 1.0, "statistics of a fresh module"), (0.1, 0.01, "standard deviation of 0.1"), (0.1, 400.0, "of 20,")],
)
def test_flux2_statistics(mean: float, variance: float, message: str):
    assert message in refusal(with_vae("flux2", flux2_vae(mean, variance)), BY_NAME["flux2"])


def test_flux2_statistics_that_are_offloaded_cannot_be_looked_at():
    vae = flux2_vae(0.0, 1.0)
    vae.bn.to("meta")
    assert space_of(with_vae("flux2", vae)).name == "flux2"


def test_flux2_channels():
    vae = diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=16
    )
    assert "16 latent channels and statistics of 64" in refusal(with_vae("flux2", vae), BY_NAME["flux2"])


def qwen_vae(**changes: Any) -> Any:
    return diffusers.AutoencoderKLQwenImage(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **changes)


def test_qwen_statistics():
    vae = qwen_vae(latents_std=[1.0] * 16)
    assert "latents_std are not those of qwen-image" in refusal(with_vae("qwen-image", vae), BY_NAME["qwen-image"])
    vae = qwen_vae(z_dim=8)
    assert "z_dim=8" in refusal(with_vae("qwen-image", vae), BY_NAME["qwen-image"])


def test_a_named_space_must_be_the_vaes():
    case = BY_NAME["flux"]
    message = refusal(case.build(), case, space="sd3")
    assert "space='sd3', but pipe.vae is that of flux1" in message
    assert capture(case.build(), stop_after=STOP, space="flux1", **case.run_arguments()).space.name == "flux1"


def wan() -> Any:
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=16,
        out_channels=16,
        text_dim=tiny.TEXT,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
    )
    vae = diffusers.AutoencoderKLWan(base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return diffusers.WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=vae.eval(),
        scheduler=diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        transformer=transformer.eval(),
    )


WAN = Case("wan", "qwen-image", wan, lambda: {"prompt_embeds": torch.randn(1, 6, tiny.TEXT), "guidance_scale": 1.0})


def test_a_video_pipeline():
    assert "WanPipeline makes a video of 81 frames" in refusal(wan(), WAN)
    assert "video of 5 frames" in refusal(wan(), WAN, num_frames=5)


def test_one_frame_of_a_video_pipeline_is_an_image():
    """Qwen-Image's VAE is that of Wan 2.1."""
    latent = capture(wan(), stop_after=STOP, **WAN.run_arguments(num_frames=1))
    assert latent.space.name == "qwen-image"
    assert latent.tensor.shape == (1, 16, 8, 12)


def test_held_forms():
    flux1, qwen = get_space("flux1"), get_space("qwen-image")
    grid = torch.randn(2, 16, 4, 6)
    assert torch.equal(normalized(grid, flux1, None), grid)
    assert torch.equal(normalized(grid.unsqueeze(2), qwen, None), grid)
    with pytest.raises(ValueError, match=r"\(2, 4, 4, 6\); for flux1 expected \(B, 16, h, w\) or tokens"):
        normalized(torch.randn(2, 4, 4, 6), flux1, None)
    with pytest.raises(ValueError, match="never told its image's size"):
        normalized(torch.randn(2, 6, 64), flux1, None)
    with pytest.raises(ValueError, match="of a video take one frame"):
        normalized(torch.randn(1, 16, 3, 4, 6), qwen, None)
    tokens = torch.nn.functional.pixel_unshuffle(grid, 2).flatten(2).transpose(1, 2)
    assert torch.equal(normalized(tokens, flux1, (39, 60)), grid)  # pixels beyond whole tokens are cut off
