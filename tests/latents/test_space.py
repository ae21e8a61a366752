"""Latent spaces: constants and layouts against diffusers, inverses, noise, errors."""

from __future__ import annotations

import inspect
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixdec.latents import SPACES, LatentSpace, Statistics, get_space, noise_levels

diffusers = pytest.importorskip("diffusers", reason="the constants are checked against diffusers")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def flux2_vae() -> nn.Module:
    """The real class and latent, convolutions as small as they go, statistics other than the initial ones."""
    vae = diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        mid_block_add_attention=False,
    )
    vae.bn.running_mean.copy_(noise(128, seed=1))
    vae.bn.running_var.copy_(noise(128, seed=2).exp())
    return vae


def example(space: LatentSpace, batch: int = 2) -> tuple[Tensor, Statistics | None]:
    """A raw latent with the statistics its space needs; 4×6 cells once normalised."""
    raw = 2 * noise(batch, space.raw_channels, 4 * space.patch, 6 * space.patch) + 0.3
    needs = space.constants is None and space.layer_norm_eps is None
    c = space.channels
    return raw, Statistics.from_variance(noise(c, seed=1), noise(c, seed=2).exp(), eps=1e-4) if needs else None


# The constants


@pytest.mark.parametrize("vae", ["AutoencoderKLQwenImage", "AutoencoderKLWan"])
def test_qwen_image_constants_are_those_of_the_vae_classes(vae: str) -> None:
    defaults = inspect.signature(getattr(diffusers, vae)).parameters
    constants = get_space("qwen-image").constants
    assert constants is not None
    assert constants.mean.tolist() == pytest.approx(defaults["latents_mean"].default, rel=1e-6)
    assert constants.std.tolist() == pytest.approx(defaults["latents_std"].default, rel=1e-6)
    assert defaults["z_dim"].default == get_space("qwen-image").channels


def test_qwen_image_normalises_as_its_pipeline() -> None:
    """The arithmetic of QwenImageImg2ImgPipeline, which has it inside a method that needs a whole VAE."""
    vae = inspect.signature(diffusers.AutoencoderKLQwenImage).parameters
    raw = noise(2, 16, 1, 4, 6)
    mean = torch.tensor(vae["latents_mean"].default).view(1, 16, 1, 1, 1)
    inverse_std = 1.0 / torch.tensor(vae["latents_std"].default).view(1, 16, 1, 1, 1)
    torch.testing.assert_close(get_space("qwen-image").normalize(raw), ((raw - mean) * inverse_std).squeeze(2))


def test_flux1_and_sdxl_constants_are_those_diffusers_documents() -> None:
    """The hub's VAE configs are not part of diffusers; the help of its remote decoder states them."""
    from diffusers.utils import remote_utils

    text = inspect.getdoc(remote_utils.remote_decode) or ""
    scale_sdxl, scale_flux = (re.search(rf"{name}: (0\.\d+)", text) for name in ("SD XL", "Flux"))
    shift_flux = re.findall(r"Flux: (0\.\d+)", text)[1]
    assert scale_sdxl and scale_flux
    raw = noise(1, 16, 3, 3)
    expected = (raw - float(shift_flux)) * float(scale_flux[1])
    torch.testing.assert_close(get_space("flux1").normalize(raw), expected)
    torch.testing.assert_close(get_space("z-image").normalize(raw), expected)
    torch.testing.assert_close(get_space("sdxl").normalize(raw[:, :4]), raw[:, :4] * float(scale_sdxl[1]))


def test_sd3_normalises_with_its_published_constants() -> None:
    raw = noise(1, 16, 3, 3)
    torch.testing.assert_close(get_space("sd3").normalize(raw), (raw - 0.0609) * 1.5305)


@pytest.mark.parametrize("name", ["flux1", "sd3", "sdxl", "z-image"])
def test_the_vae_of_diffusers_takes_what_denormalize_returns(name: str) -> None:
    """AutoencoderKL with the config of the space: every pipeline decodes latent / scaling_factor + shift_factor."""
    shift, scale = {"sd3": (0.0609, 1.5305), "sdxl": (None, 0.13025)}.get(name, (0.1159, 0.3611))
    space = get_space(name)
    vae = diffusers.AutoencoderKL(
        latent_channels=space.channels,
        block_out_channels=(8,),
        norm_num_groups=4,
        scaling_factor=scale,
        shift_factor=shift,
    )
    latent = noise(1, space.channels, 4, 4)
    expected = latent / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
    torch.testing.assert_close(space.denormalize(latent), expected)
    assert torch.isfinite(vae.decode(space.denormalize(latent)).sample).all()


# FLUX.2


def test_flux2_statistics_come_from_the_batch_norm_of_the_vae() -> None:
    vae = flux2_vae()
    assert inspect.signature(diffusers.AutoencoderKLFlux2).parameters["batch_norm_eps"].default == 1e-4
    raw = noise(2, 32, 8, 12)
    vae.eval()
    expected = vae.get_submodule("bn")(diffusers.Flux2Pipeline._patchify_latents(raw))
    torch.testing.assert_close(get_space("flux2").normalize(raw, Statistics.from_vae(vae)), expected)


def test_flux2_denormalises_as_its_pipelines() -> None:
    vae = flux2_vae()
    latent = noise(2, 128, 4, 6)
    std = torch.sqrt(vae.bn.running_var.view(1, -1, 1, 1) + vae.config.batch_norm_eps)
    expected = diffusers.Flux2Pipeline._unpatchify_latents(latent * std + vae.bn.running_mean.view(1, -1, 1, 1))
    torch.testing.assert_close(get_space("flux2").denormalize(latent, Statistics.from_vae(vae)), expected)


@pytest.mark.parametrize("pipeline", ["Flux2Pipeline", "Flux2KleinPipeline"])
def test_flux2_packs_and_unpacks_as_its_pipelines(pipeline: str) -> None:
    space, raw = get_space("flux2"), noise(2, 32, 8, 12)
    latent = space.patchify(raw)
    assert torch.equal(latent, getattr(diffusers, pipeline)._patchify_latents(raw))
    assert torch.equal(space.unpatchify(latent), raw)
    assert latent[0, 5 * 4 + 1 * 2 + 0, 2, 3] == raw[0, 5, 2 * 2 + 1, 3 * 2 + 0]
    assert torch.equal(space.unpack(getattr(diffusers, pipeline)._pack_latents(latent), 4, 6), latent)


# Tokens, time axis


def test_flux1_unpacks_what_its_pipeline_packs() -> None:
    latent = noise(2, 16, 4, 6)
    tokens = diffusers.FluxPipeline._pack_latents(latent, 2, 16, 4, 6)
    assert tokens.shape == (2, 6, 64)
    assert torch.equal(get_space("flux1").unpack(tokens, 4, 6), latent)
    assert torch.equal(diffusers.FluxPipeline._unpack_latents(tokens, 32, 48, 8), latent)


def test_qwen_image_unpacks_what_its_pipeline_packs() -> None:
    space, latent = get_space("qwen-image"), noise(2, 16, 4, 6)
    tokens = diffusers.QwenImagePipeline._pack_latents(latent, 2, 16, 4, 6)
    assert torch.equal(space.unpack(tokens, 4, 6), latent)
    assert torch.equal(space.squeeze_time(diffusers.QwenImagePipeline._unpack_latents(tokens, 32, 48, 8)), latent)


@pytest.mark.parametrize("name", ["dinov2", "siglip"])
def test_encoder_tokens_run_in_rows(name: str) -> None:
    space = get_space(name)
    grid = noise(2, space.channels, 3, 5)
    assert torch.equal(space.unpack(grid.flatten(2).transpose(1, 2), 3, 5), grid)


def test_unpack_refuses_the_wrong_size() -> None:
    tokens = noise(1, 6, 64)
    with pytest.raises(ValueError, match=r"\(1, 6, 64\); expected \(B, 4, 64\) for height 4 and width 4"):
        get_space("flux1").unpack(tokens, 4, 4)
    with pytest.raises(ValueError, match="multiples of 2"):  # 6 tokens either way, but not of a 5×6 grid
        get_space("flux1").unpack(tokens, 5, 6)
    with pytest.raises(ValueError, match="never packed"):
        get_space("sd3").unpack(tokens, 4, 6)


def test_squeeze_time_refuses_a_video() -> None:
    with pytest.raises(ValueError, match="take one frame"):
        get_space("qwen-image").squeeze_time(noise(1, 16, 3, 4, 4))


# Vision encoders


def test_dinov2_normalises_as_the_rae_of_diffusers() -> None:
    mean, std = noise(768, 4, 6, seed=1), noise(768, 4, 6, seed=2).exp()
    raw = noise(2, 768, 4, 6)
    rae = SimpleNamespace(_latents_mean=mean, _latents_std=std)
    expected = diffusers.AutoencoderRAE._normalize_latents(rae, raw)
    space, statistics = get_space("dinov2"), Statistics.from_vae(rae)  # type: ignore[arg-type]
    torch.testing.assert_close(space.normalize(raw, statistics), expected)
    torch.testing.assert_close(
        space.denormalize(expected, statistics), diffusers.AutoencoderRAE._denormalize_latents(rae, expected)
    )


def test_an_rae_without_statistics_is_refused() -> None:
    rae = SimpleNamespace(_latents_mean=torch.zeros(1), _latents_std=torch.ones(1))
    with pytest.raises(ValueError, match="carries no latent statistics"):
        Statistics.from_vae(rae)  # type: ignore[arg-type]


def test_statistics_of_another_grid_are_refused() -> None:
    statistics = Statistics(torch.zeros(768, 4, 6), torch.ones(768, 4, 6))
    with pytest.raises(ValueError, match=r"\(768, 4, 6\) do not fit a latent of shape \(1, 768, 6, 4\)"):
        get_space("dinov2").normalize(noise(1, 768, 6, 4), statistics)


def test_siglip_is_a_layer_norm_over_channels() -> None:
    raw = 3 * noise(2, 1152, 2, 3) + 1
    latent = get_space("siglip").normalize(raw)
    tokens = F.layer_norm(raw.flatten(2).transpose(1, 2), (1152,), eps=1e-6)
    torch.testing.assert_close(get_space("siglip").unpack(tokens, 2, 3), latent)
    with pytest.raises(ValueError, match="cannot be denormalised"):
        get_space("siglip").denormalize(latent)


# All spaces


@pytest.mark.parametrize("name", SPACES)
def test_normalize_has_the_shape_of_the_space_and_an_inverse(name: str) -> None:
    space = get_space(name)
    raw, statistics = example(space)
    latent = space.normalize(raw, statistics)
    assert latent.shape == (2, space.channels, 4, 6)
    assert space.is_image or not torch.allclose(latent.flatten(), raw.flatten(), atol=0.1)
    if space.layer_norm_eps is None:
        torch.testing.assert_close(space.denormalize(latent, statistics), raw)


@pytest.mark.parametrize("name", SPACES)
def test_low_precision_costs_one_rounding(name: str) -> None:
    space = get_space(name)
    raw, statistics = example(space)
    half = raw.bfloat16()
    latent = space.normalize(half, statistics)
    assert latent.dtype == torch.bfloat16
    assert torch.equal(latent, space.normalize(half.float(), statistics).bfloat16())


def test_the_table_of_spaces() -> None:
    table = {space.name: (space.channels, space.factor, space.noise) for space in SPACES.values()}
    assert table == {
        "flux1": (16, 8, "flow"),
        "flux2": (128, 16, "flow"),
        "sd3": (16, 8, "flow"),
        "sdxl": (4, 8, "vp"),
        "qwen-image": (16, 8, "flow"),
        "z-image": (16, 8, "flow"),
        "dinov2": (768, 16, "flow"),
        "siglip": (1152, 16, "flow"),
        "rgb": (3, 1, "flow"),
    }


def test_only_spaces_of_one_vae_hold_each_others_latents() -> None:
    pairs = {(a.name, b.name) for a in SPACES.values() for b in SPACES.values() if a != b and a.holds_latents_of(b)}
    assert pairs == {("flux1", "z-image"), ("z-image", "flux1")}


def test_an_unknown_space_lists_the_names() -> None:
    with pytest.raises(ValueError, match=r"'flux'; expected one of flux1, flux2, sd3, .*siglip"):
        get_space("flux")


@pytest.mark.parametrize("name", ["flux2", "dinov2"])
def test_missing_statistics_are_asked_for(name: str) -> None:
    raw, _ = example(get_space(name))
    with pytest.raises(ValueError, match=r"Statistics\.from_vae"):
        get_space(name).normalize(raw)


@pytest.mark.parametrize("name", ["flux1", "siglip"])
def test_statistics_that_would_be_ignored_are_refused(name: str) -> None:
    space = get_space(name)
    raw, _ = example(space)
    with pytest.raises(ValueError, match="pass none"):
        space.normalize(raw, Statistics(torch.zeros(space.channels), torch.ones(space.channels)))


@pytest.mark.parametrize(
    ("mean", "std", "line"),
    [
        (torch.zeros(4), torch.ones(5), "same shape"),
        (torch.zeros(1, 4), torch.ones(1, 4), "expected the same shape for both"),
        (torch.zeros(4), torch.tensor([1.0, 0.0, 1.0, 1.0]), "above 0"),
        (torch.tensor([float("nan")]), torch.ones(1), "finite"),
    ],
)
def test_bad_statistics(mean: Tensor, std: Tensor, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        Statistics(mean, std)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"unpacked flux2 latent has shape \(1, 128, 4, 4\); expected \(B, 32, h, w\)"):
        get_space("flux2").patchify(noise(1, 128, 4, 4))
    with pytest.raises(ValueError, match="multiples of 2"):
        get_space("flux2").patchify(noise(1, 32, 5, 4))
    with pytest.raises(ValueError, match=r"expected \(B, 16, h, w\)"):
        get_space("flux1").denormalize(noise(1, 4, 4, 4))


# Noise


@pytest.mark.parametrize("sigma", [0.0, 0.35, 1.0])
def test_noise_of_flow_and_variance_preserving(sigma: float) -> None:
    z, xi = noise(2, 16, 4, 4), noise(2, 16, 4, 4, seed=1)
    torch.testing.assert_close(get_space("flux1").add_noise(z, sigma, xi), (1 - sigma) * z + sigma * xi)
    expected = (1 - sigma**2) ** 0.5 * z + sigma * xi
    torch.testing.assert_close(get_space("sdxl").add_noise(z, sigma, xi), expected)


def test_flow_noise_is_that_of_diffusers_scheduler() -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(10)
    z, xi = noise(1, 16, 4, 4), noise(1, 16, 4, 4, seed=1)
    expected = scheduler.scale_noise(z, scheduler.timesteps[7:8], xi)
    torch.testing.assert_close(get_space("sd3").add_noise(z, scheduler.sigmas[7], xi), expected)


def test_each_sample_has_its_own_noise_level() -> None:
    z, xi = noise(3, 16, 4, 4), noise(3, 16, 4, 4, seed=1)
    space, levels = get_space("flux1"), [0.1, 0.5, 0.9]
    noisy = space.add_noise(z, levels, xi)
    for i, level in enumerate(levels):
        torch.testing.assert_close(noisy[i : i + 1], space.add_noise(z[i : i + 1], level, xi[i : i + 1]))
    with pytest.raises(ValueError, match="expected the latent's"):
        space.add_noise(z, levels, xi[:1])


def test_euler_latents_of_sdxl_become_variance_preserving() -> None:
    scheduler = diffusers.EulerDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="leading"
    )
    scheduler.set_timesteps(30)
    z, xi = noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)
    held = scheduler.add_noise(z, xi, scheduler.timesteps[12:13])
    space = get_space("sdxl")
    latent, sigma = space.from_euler(held, scheduler.sigmas[12])
    assert 0.5 < sigma < 1
    torch.testing.assert_close(latent, space.add_noise(z, sigma, xi))
    with pytest.raises(ValueError, match="flow noise"):
        get_space("flux1").from_euler(noise(1, 16, 4, 4), 1.0)
    with pytest.raises(ValueError, match="at least 0"):
        space.from_euler(held, float("nan"))


@pytest.mark.parametrize("sigma", [-0.1, 1.5, float("nan"), [0.2, 14.6]])
def test_noise_levels_outside_the_unit_interval(sigma: float | list[float]) -> None:
    with pytest.raises(ValueError, match=r"in \[0, 1\].*from_euler"):
        noise_levels(sigma, 2, torch.device("cpu"))


def test_noise_levels_of_another_count() -> None:
    with pytest.raises(ValueError, match=r"shape \(3,\).*each of 2"):
        noise_levels([0.1, 0.2, 0.3], 2, torch.device("cpu"))
