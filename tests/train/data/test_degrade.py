"""Real-world degradation: nothing by default, each part against its definition, all of it deterministic."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.train.data.degrade import DegradeSettings, add_noise, blur, degrade, degraded, jpeg

ALL = DegradeSettings(scale=2, blur=1, noise=1, jpeg=1)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int = 3, height: int = 48, width: int = 64) -> torch.Tensor:
    coarse = torch.rand(count, 3, 6, 8, generator=generator(9)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(-1, 1)


def test_by_default_it_is_the_paper_s():
    images = pictures()
    for scale in (1, 2, 4):
        assert torch.equal(degraded(images, DegradeSettings(scale), generator()), degrade(images, scale))


def test_deterministic_by_generator_and_in_8_bits():
    images = pictures()
    before = images.clone()
    low = degraded(images, ALL, generator())
    assert torch.equal(images, before)
    assert low.shape == (3, 3, 24, 32)
    assert low.dtype == torch.float32
    assert torch.equal(low, degraded(images, ALL, generator()))
    assert not torch.equal(low, degraded(images, ALL, generator(1)))
    levels = (low + 1) * 127.5
    assert torch.allclose(levels.round(), levels, atol=1e-3)
    assert low.abs().max() <= 1


@pytest.mark.parametrize("part", ["blur", "noise", "jpeg"])
def test_shares(part: str):
    images = pictures(1).expand(400, -1, -1, -1)
    low = degraded(images, DegradeSettings(scale=4, **{part: 0.3}), generator())
    untouched = (low == degrade(images[:1], 4)).flatten(1).all(1)
    assert 0.62 < float(untouched.float().mean()) < 0.78


def test_blur_is_a_turned_gaussian():
    """The response to a point has the covariance R(angle) diag(s1², s2²) R(angle)ᵀ."""
    point = torch.zeros(3, 3, 65, 65, dtype=torch.float64)
    point[:, :, 32, 32] = 1
    sigmas = torch.tensor([[3.0, 1.0], [3.0, 1.0], [2.0, 2.0]])
    angles = torch.tensor([0.0, math.pi / 6, 1.0])
    spread = blur(point, sigmas, angles)
    assert torch.allclose(spread.sum((2, 3)), torch.ones(3, 3, dtype=torch.float64))
    x = torch.arange(65, dtype=torch.float64) - 32
    for i, (angle, (first, second)) in enumerate(zip(angles.tolist(), sigmas.tolist(), strict=True)):
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        expected = turn @ np.diag([first**2, second**2]) @ turn.T  # of (x, y)
        plane = spread[i, 1]
        covariance = [
            [(plane * x * x).sum(), (plane * x[:, None] * x).sum()],
            [(plane * x[:, None] * x).sum(), (plane * x[:, None] * x[:, None]).sum()],
        ]
        assert np.allclose(covariance, expected, atol=0.35), i  # it is cut off at 3 sigma
        assert torch.equal(spread[i, 0], plane)


def test_blur_keeps_flat_images_and_small_ones():
    flat = torch.full((2, 3, 8, 5), 0.3)
    sigmas = torch.tensor([[3.0, 0.5], [0.01, 0.01]])
    assert torch.allclose(blur(flat, sigmas, torch.tensor([0.4, 2.0])), flat, atol=1e-6)
    images = pictures(2)
    assert torch.equal(blur(images, torch.full((2, 2), 0.01), torch.zeros(2)), images)


def test_noise_has_the_variance_of_its_model():
    """Var = v/photons + (read/255)², the same mean, for v away from the ends."""
    for v, photons, read in ((0.25, 400.0, 0.0), (0.5, 1e9, 10.0), (0.5, 1000.0, 5.0)):
        flat = torch.full((1, 3, 200, 200), 2 * v - 1)
        noisy = (add_noise(flat, torch.tensor([photons]), torch.tensor([read]), generator()) + 1) / 2
        expected = v / photons + (read / 255) ** 2 + (1 / 255) ** 2 / 12
        assert float(noisy.mean()) == pytest.approx(v, abs=1e-3)
        assert float(noisy.var()) == pytest.approx(expected, rel=0.05)
    two = add_noise(torch.zeros(2, 3, 50, 50), torch.tensor([1e9, 1e9]), torch.tensor([0.0, 15.0]), generator())
    assert two[0].std() < 0.005
    assert two[1].std() > 0.08


def test_jpeg_is_pillow_s():
    image = pictures(1)[0]
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=40, subsampling="4:2:0")
    expected = np.asarray(Image.open(file))
    ours = ((jpeg(image, 40) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(ours, expected)
    error = [float((jpeg(image, quality) - image).square().mean()) for quality in (10, 50, 95)]
    assert error[0] > error[1] > error[2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": 0},
        {"blur": 1.5},
        {"noise": -0.1},
        {"jpeg": float("nan")},
        {"blur_sigma": (0.0, 1.0)},
        {"read_noise": (5.0, 1.0)},
        {"photons": (0.0, 10.0)},
        {"jpeg_quality": (30, 101)},
    ],
)
def test_refuses(wrong: dict[str, object]):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
        DegradeSettings(**wrong)


def test_sides_that_cannot_be_shrunk():
    with pytest.raises(ValueError, match="multiples of 4"):
        degraded(pictures(1, 46, 64), DegradeSettings(4), generator())
