"""check_latent: refuses what is not the network's latent with a line whose advice works, and nothing else."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from pixdec.latents import SPACES, LatentSpace, Statistics, check_latent, get_space

SHARED = Path(__file__).resolve().parents[2] / "../shared"
WITH_CONSTANTS = ["flux1", "z-image", "sdxl", "qwen-image"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(channels: int, side: int = 16, *, contrast: float = 0.8, seed: int = 0) -> Tensor:
    """(1, C, side, side) of smooth structure, channels of unequal spread and mean: the form of a clean latent."""
    coarse = F.interpolate(noise(1, channels, 4, 4, seed=seed), size=(side, side), mode="bicubic", antialias=True)
    field = coarse + 0.3 * noise(1, channels, side, side, seed=seed + 1)
    field = (field - field.mean((2, 3), keepdim=True)) / field.std((2, 3), keepdim=True)
    spread = contrast * (0.2 * noise(1, channels, 1, 1, seed=seed + 2)).exp()
    return field * spread + 0.4 * noise(1, channels, 1, 1, seed=seed + 3)


def refusal(tensor: object, space: LatentSpace) -> str:
    with pytest.raises(ValueError) as caught:
        check_latent(tensor, space)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FLUX2_STATISTICS = Statistics(
    0.3 * noise(128, seed=7), 1.8 * (0.15 * noise(128, seed=8)).exp()
)  # of the size of the VAE's own


def follow(advice: str, latent: Tensor, *, height: int = 0, width: int = 0) -> Tensor:
    """Run the call that a refusal names."""
    known = {
        "get_space": get_space,
        "latent": latent,
        "height": height,
        "width": width,
        "torch": torch,
        "Statistics": type("Statistics", (), {"from_vae": staticmethod(lambda vae: FLUX2_STATISTICS)}),
        "vae": None,
    }
    return eval(advice, known)


# What must pass


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("sigma", [0.0, 0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("contrast", [0.1, 0.5, 0.8, 1.2])
def test_normalised_latents_pass_at_every_noise_level(name: str, sigma: float, contrast: float) -> None:
    space = get_space(name)
    clean = picture(space.channels, contrast=contrast)
    if name == "siglip":  # its clean latents have left a LayerNorm
        clean = space.normalize(clean)
    check_latent(space.add_noise(clean, sigma, noise(*clean.shape, seed=9)), space)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flat_tiny_and_low_precision_latents_pass(name: str, dtype: torch.dtype) -> None:
    space = get_space(name)
    check_latent(torch.zeros(1, space.channels, 8, 8, dtype=dtype), space)
    check_latent(noise(2, space.channels, 8, 8).to(dtype), space)
    flat = noise(1, space.channels, 1, 1) + 0.05 * noise(1, space.channels, 16, 16, seed=1)
    check_latent(flat.to(dtype), space)
    for side in (1, 2, 7):  # too few cells to judge, whatever the values
        check_latent(4 * noise(1, space.channels, side, side).to(dtype), space)


@pytest.mark.parametrize("name", ["flux1", "sdxl", "flux2"])
def test_a_dead_channel_and_a_flat_neighbour_do_not_matter(name: str) -> None:
    space = get_space(name)
    latent = torch.cat([picture(space.channels), torch.zeros(1, space.channels, 16, 16)])
    latent[:, 1] = 0
    check_latent(latent, space)


# Raw latents


@pytest.mark.parametrize("name", WITH_CONSTANTS)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 0.8])
def test_raw_latents_are_recognised_and_the_advice_converts_them(name: str, sigma: float) -> None:
    space = get_space(name)
    clean = picture(space.channels)
    latent = space.add_noise(clean, sigma, noise(*clean.shape, seed=9))
    raw = space.denormalize(latent)
    message, advice = refusal(raw, space), f"get_space('{name}').normalize(latent)"
    assert "it looks raw" in message
    assert advice in message
    torch.testing.assert_close(follow(advice, raw), latent)


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_a_batch_of_raw_latents(name: str) -> None:
    space = get_space(name)
    raw = space.denormalize(torch.cat([picture(space.channels, seed=s, contrast=0.7) for s in (0, 10, 20)]))
    assert "it looks raw" in refusal(raw.bfloat16(), space)


@pytest.mark.parametrize("seed", range(0, 40, 4))
def test_the_pattern_of_qwen_image_channels_shows_raw_latents_of_low_contrast(seed: int) -> None:
    space, latent = get_space("qwen-image"), picture(16, contrast=0.6, seed=seed)
    assert "it looks raw" in refusal(space.denormalize(latent), space)
    check_latent(2 * latent, space)  # as large as that raw one, without the pattern


def test_a_dead_channel_does_not_hide_a_raw_latent() -> None:
    raw = get_space("flux1").denormalize(picture(16, contrast=1.0))
    raw[:, 5] = 0.1
    assert "it looks raw" in refusal(raw, get_space("flux1"))


def test_a_statistical_refusal_can_be_overruled_and_says_how() -> None:
    raw = get_space("flux1").denormalize(picture(16))
    assert "Latent(latent, space, sigma, statistics=False)" in refusal(raw, get_space("flux1"))
    check_latent(raw, get_space("flux1"), statistics=False)


def test_sdxl_in_the_euler_frame() -> None:
    space = get_space("sdxl")
    held = picture(4) + 5 * noise(1, 4, 16, 16, seed=9)
    assert "get_space('sdxl').from_euler(latent, sigma) if the Euler scheduler's" in refusal(held, space)
    check_latent(space.from_euler(held, 5.0)[0], space)


def test_raw_sd3_latents_cannot_be_told_from_low_contrast_so_they_warn() -> None:
    space = get_space("sd3")
    raw = space.denormalize(picture(16))
    with pytest.warns(UserWarning, match=r"standard deviation 0\.5.*get_space\('sd3'\)\.normalize\(latent\)"):
        check_latent(raw, space, sigma=0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_latent(raw, space)  # the noise level is unknown
        check_latent(raw, space, sigma=0.5)  # half noise has this spread when normalised
        check_latent(picture(16, contrast=0.9), space, sigma=0.0)
        check_latent(picture(16, contrast=0.1), space, sigma=0.0)  # flatter than a raw picture


def test_raw_flux1_latents_for_sd3() -> None:
    raw = get_space("flux1").denormalize(picture(16))
    assert "as of a raw flux1 or qwen-image latent" in refusal(raw, get_space("sd3"))


# FLUX.2


def test_raw_and_unpacked_flux2_latents() -> None:
    space, latent = get_space("flux2"), picture(128)
    raw = space.denormalize(latent, FLUX2_STATISTICS)
    message, advice = refusal(raw, space), "get_space('flux2').normalize(latent, Statistics.from_vae(vae))"
    assert "it looks like the raw latent" in message
    assert message.endswith(f"call {advice}")
    torch.testing.assert_close(follow(advice, raw), latent)

    message, advice = refusal(space.unpatchify(latent), space), "get_space('flux2').patchify(latent)"
    assert "normalised but not packed" in message
    assert f"call {advice}, or " in message
    assert torch.equal(follow(advice, space.unpatchify(latent)), latent)


def test_packed_but_raw_flux2_latents() -> None:
    space, latent = get_space("flux2"), picture(128)
    packed = space.patchify(space.denormalize(latent, FLUX2_STATISTICS))
    advice = "get_space('flux2').normalize(get_space('flux2').unpatchify(latent), Statistics.from_vae(vae))"
    assert f"call {advice}; " in refusal(packed, space)
    torch.testing.assert_close(follow(advice, packed), latent)


def test_flux2_latents_packed_in_another_order() -> None:
    space = get_space("flux2")
    latent = space.patchify(picture(32, 32))
    check_latent(latent, space)
    misordered = latent.unflatten(1, (32, 4)).transpose(1, 2).flatten(1, 2)
    message, advice = refusal(misordered, space), "latent.unflatten(1, (4, 32)).transpose(1, 2).flatten(1, 2)"
    assert f"packed as (dy, dx, c) instead of (c, dy, dx): call {advice}; " in message
    assert torch.equal(follow(advice, misordered), latent)


# Vision encoders


def test_raw_dinov2_tokens() -> None:
    space = get_space("dinov2")
    raw = F.layer_norm(noise(1, 8, 8, 768), (768,)).movedim(-1, 1)
    for dtype in (torch.float32, torch.bfloat16):
        assert "as the LayerNorm leaves it" in refusal(raw.to(dtype), space)
    assert "leave the final LayerNorm on" in refusal(3 * noise(1, 768, 8, 8), space)


def test_raw_siglip_tokens() -> None:
    space, advice = get_space("siglip"), "get_space('siglip').normalize(latent)"
    for raw in (2.5 * noise(1, 1152, 8, 8), noise(1, 1152, 8, 8) + 0.5):
        message = refusal(raw, space)
        assert "it looks raw" in message
        assert advice in message
        check_latent(follow(advice, raw), space)


# Shapes


@pytest.mark.parametrize(
    ("name", "shape", "looks", "advice"),
    [
        ("flux1", (2, 24, 64), "tokens", "get_space('flux1').unpack(latent, height, width)"),
        ("qwen-image", (2, 24, 64), "tokens", "get_space('qwen-image').unpack(latent, height, width)"),
        ("flux2", (2, 96, 128), "tokens", "get_space('flux2').unpack(latent, height, width)"),
        ("siglip", (2, 96, 1152), "tokens", "get_space('siglip').unpack(latent, height, width)"),
        ("flux1", (2, 64, 4, 6), "packed 2×2", "torch.nn.functional.pixel_shuffle(latent, 2)"),
        ("flux1", (1, 8, 12, 16), "channels-last", "latent.permute(0, 3, 1, 2)"),
        ("sdxl", (4, 8, 12), "no batch axis", "latent.unsqueeze(0)"),
        ("qwen-image", (1, 16, 1, 8, 12), "time axis", "latent.squeeze(2)"),
    ],
)
def test_a_wrong_layout_is_named_and_the_advice_converts_it(
    name: str, shape: tuple[int, ...], looks: str, advice: str
) -> None:
    space, latent = get_space(name), noise(*shape)
    message = refusal(latent, space)
    assert looks in message
    assert advice in message
    converted = follow(advice, latent, height=8, width=12)
    assert converted.shape[1:] == (space.channels, 8, 12)
    check_latent(converted, space)


def test_a_raw_latent_with_a_time_axis() -> None:
    space, latent = get_space("qwen-image"), picture(16)
    raw = space.denormalize(latent).unsqueeze(2)
    message, advice = refusal(raw, space), "get_space('qwen-image').normalize(latent)"
    assert message.endswith(f"it looks raw, with a time axis; call {advice}")
    torch.testing.assert_close(follow(advice, raw), latent)


@pytest.mark.parametrize(
    ("name", "tensor", "line"),
    [
        ("flux1", noise(1, 128, 8, 8), "it looks like a latent of flux2; take a decoder of that space"),
        ("flux1", noise(1, 32, 8, 8), "it looks like a latent of flux2;"),
        ("flux2", noise(1, 16, 8, 8), "it looks like a latent of flux1 or sd3 or qwen-image or z-image;"),
        ("siglip", noise(1, 768, 8, 8), "it looks like a latent of dinov2;"),
        ("sd3", noise(1, 24, 64), "it looks like tokens of flux1 or qwen-image;"),
        ("qwen-image", noise(1, 16, 5, 8, 8), "a video of 5 latent frames"),
        ("flux1", noise(1, 3, 64, 64), "it looks like an image, not a latent"),
        ("flux1", noise(1, 7, 64, 64), "no latent of a space known here has this many channels"),
        ("flux1", noise(64), "no latent of a space known here has this shape"),
        ("flux1", torch.tensor(1.0), "no latent of a space known here has this shape"),
        ("flux1", torch.zeros(0, 16, 8, 8), "it is empty"),
        ("flux1", torch.zeros(1, 16, 0, 8), "it is empty"),
        ("flux1", torch.zeros(1, 16, 8, 8, dtype=torch.uint8), "its values are torch.uint8"),
        ("flux1", np.zeros((1, 16, 8, 8)), "must be a torch.Tensor (B, 16, h, w), got ndarray"),
        ("flux1", None, "got NoneType"),
    ],
)
def test_what_cannot_be_converted_is_named(name: str, tensor: object, line: str) -> None:
    message = refusal(tensor, get_space(name))
    assert line in message
    if isinstance(tensor, Tensor):
        assert str(tuple(tensor.shape)) in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_broken_value_is_enough(value: float) -> None:
    latent = noise(1, 16, 2, 2)
    latent[0, 3, 1, 0] = value
    assert "1 of its 64 values are NaN or infinite" in refusal(latent, get_space("flux1"))


# Photographs, in the one space whose encoder is at hand


class _Block(nn.Module):
    """A block of TAEF2: [conv-ReLU-conv-ReLU-conv] + identity, ReLU; a pooled one adds a 1×1 branch before."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        conv = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(conv[0], nn.ReLU(), conv[1], nn.ReLU(), conv[2])
        narrow, wide = nn.Conv2d(256, 64, 1, bias=False), nn.Conv2d(64, 256, 1, bias=False)
        self.pool = nn.Sequential(wide, nn.GroupNorm(4, 256), nn.ReLU(), narrow) if pooled else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.pool is None else x + self.pool(x)
        return F.relu(self.conv(x) + x)


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    """Eight photographs in FLUX.2's space, normalised and packed: (8, 128, 8, 8)."""
    weights, kodak = SHARED / "weights/taef2/taef2_encoder.pth", SHARED / "kodak"
    if not weights.is_file() or not kodak.is_dir():
        pytest.skip("needs ../shared/weights/taef2 and ../shared/kodak")
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), _Block(False)]
    for stage in range(3):
        layers += [nn.Conv2d(64, 64, 3, stride=2, padding=1, bias=False), *(_Block(stage == 2) for _ in range(3))]
    encoder = nn.Sequential(*layers, nn.Conv2d(64, 32, 3, padding=1))
    encoder.load_state_dict(torch.load(weights, weights_only=True))
    images = [
        np.array(Image.open(path).convert("RGB").resize((192, 192)).crop((32, 32, 160, 160)))
        for path in sorted(kodak.glob("*.png"))[:8]
    ]
    with torch.no_grad():
        batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 255
        return F.pixel_unshuffle(encoder(batch), 2)


def test_photographs_pass_at_every_noise_level(photographs: Tensor) -> None:
    space = get_space("flux2")
    for sigma in (0.0, 0.2, 0.5, 0.8, 1.0):
        for photograph in space.add_noise(photographs, sigma, noise(8, 128, 8, 8)).split(1):
            check_latent(photograph, space)


def test_raw_and_misordered_photographs_do_not(photographs: Tensor) -> None:
    space = get_space("flux2")
    statistics = Statistics(FLUX2_STATISTICS.mean, FLUX2_STATISTICS.std * 1.2)  # raw ones of about 1.8, as measured
    for photograph in photographs.split(1):
        raw = space.denormalize(photograph, statistics)
        assert "raw latent of its VAE" in refusal(raw, space)
        assert "it looks raw" in refusal(space.patchify(raw), space)
        assert "(dy, dx, c)" in refusal(photograph.unflatten(1, (32, 4)).transpose(1, 2).flatten(1, 2), space)


def test_pixels_of_another_range_are_not_the_space_rgb() -> None:
    image = torch.rand(1, 3, 16, 16)
    check_latent(image * 2 - 1, get_space("rgb"), sigma=0.0)
    with pytest.raises(ValueError, match=r"127\.5 - 1"):
        check_latent(image * 255, get_space("rgb"), sigma=0.0)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        check_latent(image * 6 - 3, get_space("rgb"), sigma=0.0)
