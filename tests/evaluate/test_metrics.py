"""Full-reference figures against answers worked out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.evaluate.metrics import fidelity as metrics

SEED = 5


KODAK = Path(__file__).resolve().parents[2] / "../shared/kodak"


def noise(height: int = 96, width: int = 128, spread: float = 30.0) -> np.ndarray:
    """Grey Gaussian noise around 128, (H, W, 3) uint8."""
    plane = np.random.default_rng(SEED).normal(128, spread, (height, width, 1))
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8).repeat(3, axis=2)


def flat(level: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), level, dtype=np.uint8)


def test_identical_images_are_perfect() -> None:
    image = noise()
    assert metrics.psnr(image, image) == math.inf
    assert metrics.ssim(image, image) == pytest.approx(1)
    assert metrics.spectrum_error(image, image) == 0
    assert metrics.color_drift(image, image) == 0


def test_psnr_of_a_known_error() -> None:
    assert metrics.psnr(flat(100), flat(110)) == pytest.approx(10 * math.log10(255**2 / 100))
    one_channel = flat(100)
    one_channel[:, :, 1] += 10
    assert metrics.psnr(one_channel, flat(100)) == pytest.approx(10 * math.log10(255**2 / (100 / 3)))
    # uint8 differences must not wrap around: 0 - 255 is a large error, not 1.
    assert metrics.psnr(flat(0), flat(255)) == pytest.approx(0)


def test_luma_weighs_the_channels() -> None:
    image = np.diag([100, 100, 100]).astype(np.uint8)[None]  # one red, one green, one blue pixel
    np.testing.assert_allclose(metrics.luma(image), [[29.9, 58.7, 11.4]])


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    c1 = (0.01 * 255) ** 2
    expected = (2 * 100 * 150 + c1) / (100**2 + 150**2 + c1)
    assert metrics.ssim(flat(100), flat(150)) == pytest.approx(expected, abs=1e-6)


def photo_pair() -> tuple[np.ndarray, np.ndarray]:
    reference = gray(natural(96))[:, :80].copy()
    reference[:, :, 2] = reference[::-1, :, 0]
    return (reference * 0.9 + noise(96, 80) * 0.1).astype(np.uint8), reference


def test_psnr_and_ssim_are_those_of_other_libraries() -> None:
    """torchmetrics and scikit-image, on the same images."""
    image, reference = photo_pair()
    scikit = pytest.importorskip("skimage.metrics")
    torchmetrics = pytest.importorskip("torchmetrics.functional.image")
    a, b = (torch.tensor(each, dtype=torch.float64).permute(2, 0, 1)[None] for each in (image, reference))
    assert metrics.psnr(image, reference) == pytest.approx(scikit.peak_signal_noise_ratio(reference, image))
    ours = metrics.ssim(image, reference)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    theirs = scikit.structural_similarity(image, reference, data_range=255, channel_axis=2, **gaussian)
    assert ours == pytest.approx(theirs, abs=1e-7)
    theirs = torchmetrics.structural_similarity_index_measure(a, b, data_range=255.0)
    assert ours == pytest.approx(float(theirs), abs=3e-4)  # which rounds variances otherwise
    assert ours != pytest.approx(metrics.ssim(image, reference, padding="same"), abs=1e-4)


def test_ssim_with_zeros_beyond_the_border() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image, reference = photo_pair()
    a, b = image.astype(float), reference.astype(float)

    def blurred(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, 1.5, radius=5, mode="constant", axes=(0, 1))

    mean_a, mean_b = blurred(a), blurred(b)
    c1, c2 = 2.55**2, 7.65**2
    similarity = (2 * mean_a * mean_b + c1) * (2 * (blurred(a * b) - mean_a * mean_b) + c2)
    similarity /= (mean_a**2 + mean_b**2 + c1) * (blurred(a * a) + blurred(b * b) - mean_a**2 - mean_b**2 + c2)
    assert metrics.ssim(image, reference, padding="same") == pytest.approx(similarity.mean(), abs=1e-9)


def test_energy_of_fine_detail() -> None:
    """Of white noise, of half the deviation, and a sum over all frequencies by hand."""
    full, half = noise(256, 256, spread=32), noise(256, 256, spread=16)
    assert metrics.high_frequency(half, full) == pytest.approx(20 * math.log10(0.5), abs=0.1)
    assert metrics.high_frequency(full, full) == 0
    soft = Image.fromarray(full).resize((64, 64), Image.Resampling.BOX).resize((256, 256), Image.Resampling.BICUBIC)
    assert metrics.high_frequency(soft, full) < -15
    energies = list[float]()
    for picture in (half, full):
        y = metrics.luma(picture)
        window = np.outer(np.hanning(256), np.hanning(256))
        power = np.abs(np.fft.fftshift(np.fft.fft2((y - y.mean()) * window))) ** 2
        down, across = np.indices(power.shape) - 128
        radius = np.rint(np.hypot(down, across))
        energies.append(power[(radius > 32) & (radius <= 128)].sum())
    by_hand = 10 * math.log10(energies[0] / energies[1])
    assert metrics.high_frequency(half, full) == pytest.approx(by_hand, abs=0.02)


def test_pil_and_array_agree() -> None:
    image, other = noise(), noise(spread=20)
    assert metrics.psnr(Image.fromarray(image), other) == metrics.psnr(image, Image.fromarray(other))


def test_spectrum_of_white_noise_is_its_variance() -> None:
    power = metrics.radial_spectrum(noise(512, 512, spread=30))
    assert power.shape == (256,)
    assert power[32:].mean() == pytest.approx(900, rel=0.02)
    assert power[128:].mean() == pytest.approx(power[32:128].mean(), rel=0.05)


def test_spectrum_finds_a_wave_at_its_frequency() -> None:
    wave = 128 + 50 * np.sin(2 * np.pi * np.arange(128) / 8)  # 1/8 cycle per pixel: a quarter of Nyquist
    image = np.rint(wave).astype(np.uint8)[None, :, None].repeat(128, axis=0).repeat(3, axis=2)
    power = metrics.radial_spectrum(image)
    assert (int(np.argmax(power)) + 1) / len(power) == 0.25
    tall = metrics.radial_spectrum(image.transpose(1, 0, 2)[:, :96])
    assert (int(np.argmax(tall)) + 1) / len(tall) == 0.25


def test_spectrum_error_of_a_gain() -> None:
    image = noise(256, 256, spread=25)
    double = (128 + 2 * (image.astype(int) - 128)).clip(0, 255).astype(np.uint8)
    assert metrics.spectrum_error(double, image) == pytest.approx(2 * math.log10(2), abs=0.01)
    brighter = (image.astype(int) + 20).clip(0, 255).astype(np.uint8)
    assert metrics.spectrum_error(brighter, image) < 0.001


def test_spectrum_error_of_lost_detail_is_in_its_band() -> None:
    image = Image.fromarray(noise(256, 256, spread=25))
    lost = image.resize((64, 64), Image.Resampling.BOX).resize((256, 256), Image.Resampling.LANCZOS)
    low = metrics.spectrum_error(lost, image, band=(0, 0.1))
    high = metrics.spectrum_error(lost, image, band=(0.3, 1))
    assert low < 0.1
    assert high > 1
    assert low < metrics.spectrum_error(lost, image) < high


def test_spectrum_error_of_a_flat_image_is_finite() -> None:
    image = noise(128, 128, spread=25)
    expected = math.log10(25**2 / metrics.QUANTIZATION_POWER)
    assert metrics.spectrum_error(flat(128, 128, 128), image) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("band", [(0.5, 0.5), (-0.1, 1), (0, 1.5), (0.0, 0.001)])
def test_spectrum_error_refuses_a_bad_band(band: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="band"):
        metrics.spectrum_error(noise(), noise(), band=band)


def lightness(level: int) -> float:
    """CIE L* of an sRGB grey."""
    encoded = level / 255
    linear = ((encoded + 0.055) / 1.055) ** 2.4
    return 116 * linear ** (1 / 3) - 16


def test_color_drift_of_a_grey_shift() -> None:
    first, second = lightness(100), lightness(110)
    middle = (first + second) / 2
    weight = 1 + 0.015 * (middle - 50) ** 2 / math.sqrt(20 + (middle - 50) ** 2)
    expected = (second - first) / weight  # CIEDE2000 where only lightness differs
    assert metrics.color_drift(flat(110), flat(100)) == pytest.approx(expected, rel=1e-3)


def test_color_drift_ignores_texture_and_sees_color() -> None:
    checks = np.indices((64, 64)).sum(axis=0) % 2
    texture = (120 + 16 * checks).astype(np.uint8)[:, :, None].repeat(3, axis=2)
    assert metrics.color_drift(texture, flat(128)) == pytest.approx(0, abs=1e-6)
    tinted = flat(128)
    tinted[:, :, 1] += 12
    assert metrics.color_drift(tinted, flat(128)) > 3


def test_block_means_at_the_border() -> None:
    image = np.zeros((20, 33, 3), dtype=np.uint8)
    image[16:, 32:] = 200
    means = metrics.block_means(image, 16)
    assert means.shape == (2, 3, 3)
    assert (means[1, 2] == 200).all()
    assert means.sum() == 600


def natural(side: int = 192) -> np.ndarray:
    """Gray noise with the spectrum of photographs, amplitude 1/f^1.5: (side, side) float around 128."""
    f = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    spectrum = np.fft.fft2(np.random.default_rng(0).normal(size=(side, side))) / np.maximum(f, 1 / side) ** 1.5
    plane = np.fft.ifft2(spectrum).real
    return 128 + 40 * (plane - plane.mean()) / plane.std()


def gray(plane: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(plane), 0, 255).astype(np.uint8)[:, :, None].repeat(3, axis=2)


@pytest.mark.parametrize("name", ["dots", "checkerboard", "columns", "diagonal", "stairs"])
def test_pattern_is_found(name: str) -> None:
    y, x = np.indices((192, 192))
    plane = natural()
    seen = {
        "dots": plane + 6 * ((y % 4 == 0) & (x % 4 == 0)),
        "checkerboard": plane + (y + x) % 2 * 4,
        "columns": plane + 8 * (x % 4 == 0),
        "diagonal": plane + 8 * ((x + y) % 4 == 0),
        "stairs": np.kron(128 + 100 * np.tanh((x - 0.4 * y - 12)[::4, ::4] / 4), np.ones((4, 4))),  # a slanted edge
    }
    assert metrics.pattern(gray(plane)) < 0.15
    assert metrics.pattern(gray(seen[name])) > 0.5


@pytest.mark.skipif(not KODAK.is_dir(), reason="../shared/kodak is absent")
@pytest.mark.parametrize("name", ["kodim01.png", "kodim05.png", "kodim08.png"])
def test_pattern_passes_photographs(name: str) -> None:
    photo = Image.open(KODAK / name).convert("RGB")
    assert metrics.pattern(photo) < 0.15
    smooth = photo.resize((photo.width // 4, photo.height // 4)).resize(photo.size, Image.Resampling.LANCZOS)
    assert metrics.pattern(smooth) < 0.15


def test_pattern_needs_a_window() -> None:
    with pytest.raises(ValueError, match="31x40: a pattern needs sides of at least 32"):
        metrics.pattern(flat(0, 40, 31))


def test_consistency() -> None:
    image = Image.fromarray(noise(64, 128))
    low = np.asarray(image.resize((32, 16), Image.Resampling.BICUBIC))
    assert metrics.consistency(image, low) == math.inf
    shifted = (low.astype(int) + 5).astype(np.uint8)
    assert metrics.consistency(image, shifted) == pytest.approx(10 * math.log10(255**2 / 25))
    with pytest.raises(ValueError, match=r"expected 64x32.*2 times"):
        metrics.consistency(image, low, scale=2)


@pytest.mark.parametrize("figure", [metrics.psnr, metrics.ssim, metrics.high_frequency, metrics.color_drift])
def test_sizes_must_agree(figure) -> None:
    with pytest.raises(ValueError, match="32x64 against a reference of 64x32"):
        figure(flat(0, 64, 32), flat(0, 32, 64))


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((0, 8, 3), np.uint8)],
)
def test_only_images_as_saved(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        metrics.psnr(image, image)


def test_only_rgb_pil_images() -> None:
    with pytest.raises(ValueError, match="mode RGBA"):
        metrics.psnr(Image.new("RGBA", (8, 8)), Image.new("RGB", (8, 8)))


def test_too_small() -> None:
    with pytest.raises(ValueError, match="at least 11"):
        metrics.ssim(flat(0, 10, 20), flat(0, 10, 20))
    with pytest.raises(ValueError, match="at least 8"):
        metrics.spectrum_error(flat(0, 7, 20), flat(0, 7, 20))
