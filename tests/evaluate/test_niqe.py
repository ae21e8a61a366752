"""NIQE: the distribution fit against known parameters, features of hand-made patches, a photograph's figure."""

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pixdec.evaluate.metrics.niqe import (
    FEATURES,
    NiqeModel,
    fit_aggd,
    image_features,
    load_niqe,
    mscn,
    niqe,
    patch_features,
)

KODAK = Path(__file__).resolve().parents[2] / "../shared/kodak"
PLAIN = NiqeModel(np.zeros(FEATURES), np.eye(FEATURES))


def published() -> NiqeModel:
    try:
        return load_niqe()
    except ValueError as error:
        pytest.skip(str(error))


def aggd_samples(alpha: float, left: float, right: float, count: int) -> np.ndarray:
    """Draws from an asymmetric generalized Gaussian: |x| = β·G^(1/α), G gamma-distributed, sides in proportion to β."""
    rng = np.random.default_rng(11)
    size = rng.gamma(1 / alpha, size=count) ** (1 / alpha)
    return np.where(rng.random(count) < left / (left + right), -left * size, right * size)


@pytest.mark.parametrize(("alpha", "left", "right"), [(2, 1, 1), (1, 0.5, 1.5), (0.6, 0.2, 0.1), (3.5, 2, 1)])
def test_aggd_parameters_are_recovered(alpha: float, left: float, right: float) -> None:
    samples = aggd_samples(alpha, left, right, 400_000)[None]
    fitted = [float(value[0]) for value in fit_aggd(samples)]
    assert fitted == pytest.approx([alpha, left, right], rel=0.03)


def test_aggd_of_each_row_alone() -> None:
    rows = np.stack([aggd_samples(2, 1, 1, 50_000), aggd_samples(0.8, 1, 2, 50_000)])
    together = np.stack(fit_aggd(rows))
    alone = np.concatenate([np.stack(fit_aggd(row[None])) for row in rows], axis=1)
    np.testing.assert_allclose(together, alone)


def test_mscn_of_a_flat_plane_and_of_noise() -> None:
    assert np.abs(mscn(np.full((20, 30), 77.0))).max() < 1e-6
    plane = np.random.default_rng(0).normal(128, 20, (20, 30))
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    weights, window = np.outer(taps, taps) / taps.sum() ** 2, plane[5:12, 7:14]
    mean = (weights * window).sum()
    deviation = math.sqrt((weights * (window - mean) ** 2).sum())
    assert mscn(plane)[8, 10] == pytest.approx((plane[8, 10] - mean) / (deviation + 1))


def test_features_of_independent_normal_coefficients() -> None:
    """White Gaussian patches: shape 2, width √2; products of neighbors are symmetric, so η = 0 and β_l = β_r."""
    rng = np.random.default_rng(2)
    features = patch_features(rng.normal(size=(20, 96, 96)), rng.normal(size=(20, 48, 48)))
    assert features.shape == (20, FEATURES)
    mean = features.mean(axis=0)
    for first in (0, 18):
        assert mean[first : first + 2] == pytest.approx([2, math.sqrt(2)], rel=0.03)
        for pair in range(4):
            _, eta, left, right = mean[first + 2 + 4 * pair : first + 6 + 4 * pair]
            assert abs(eta) < 0.03
            assert left == pytest.approx(right, rel=0.05)


def test_features_tell_the_directions_apart() -> None:
    """Each neighbor pair sees correlation (η > 0) along its own direction."""
    rng = np.random.default_rng(4)
    source = rng.normal(size=(4, 97, 98))
    core = (slice(None), slice(0, 96), slice(1, 97))
    moved = {  # each pixel plus its neighbor: right, below, below right, below left
        0: source[:, 0:96, 2:98],
        1: source[:, 1:97, 1:97],
        2: source[:, 1:97, 2:98],
        3: source[:, 1:97, 0:96],
    }
    for direction, neighbor in moved.items():
        full = source[core] + neighbor
        etas = patch_features(full, full[:, :48, :48]).mean(axis=0)[[3, 7, 11, 15]]
        assert int(np.argmax(etas)) == direction
        assert etas[direction] > 0.3
        assert np.abs(np.delete(etas, direction)).max() < 0.1


def test_flat_patches_are_left_out() -> None:
    rng = np.random.default_rng(3)
    full, half = rng.normal(size=(3, 96, 96)), rng.normal(size=(3, 48, 48))
    kept = patch_features(full, half)[[0, 2]]
    full[1] = 0
    np.testing.assert_array_equal(patch_features(full, half), kept)


def test_distance_of_a_known_gaussian() -> None:
    """With the model one step d along a feature from the image, and (Σ1 + Σ2)/2 = σ²·1, the distance is d/σ."""
    image = random_image(480, 480)
    features = image_features(image)
    assert features.shape == (25, FEATURES)
    spread = 1000 * np.eye(FEATURES) - np.cov(features, rowvar=False)  # so that the two average to 500·1
    step = np.zeros(FEATURES)
    step[7] = 3.0
    model = NiqeModel(features.mean(axis=0) + step, spread)
    assert niqe(image, model) == pytest.approx(3 / math.sqrt(500))


def random_image(height: int, width: int) -> Image.Image:
    """Smooth random colours under fine noise: enough structure for every patch to have statistics."""
    rng = np.random.default_rng(9)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8))


@pytest.mark.parametrize(("size", "message"), [((95, 300), "at least 96"), ((96, 96), "NIQE needs 2")])
def test_too_small_an_image(size: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        niqe(random_image(*size), PLAIN)


def test_flat_image() -> None:
    with pytest.raises(ValueError, match="0 usable"):
        niqe(Image.new("RGB", (300, 300), (9, 9, 9)), PLAIN)


def test_pixels_outside_whole_patches_do_not_count() -> None:
    image = random_image(256, 320)
    assert niqe(image, PLAIN) == niqe(image.crop((0, 0, 288, 192)), PLAIN)


@pytest.mark.skipif(not KODAK.is_dir(), reason="../shared/kodak is absent")
def test_published_figure_of_a_photograph_and_its_damage() -> None:
    """Kodak's originals have 3.26 in the literature; the mean of 1 to 7 is 3.258 here."""
    model = published()
    photo = Image.open(KODAK / "kodim07.png").convert("RGB")
    good = niqe(photo, model)
    assert good == pytest.approx(3.237, abs=0.02)
    blurred = [niqe(photo.filter(ImageFilter.GaussianBlur(radius)), model) for radius in (1.5, 4)]
    assert good + 1 < blurred[0] < blurred[1]
    pixels = np.asarray(photo).astype(float)
    noisy = np.clip(pixels + np.random.default_rng(1).normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
    assert niqe(noisy, model) > good + 1


def test_model_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "model.npz"
    np.savez(path, mu_pris_param=np.arange(36.0)[None], cov_pris_param=np.eye(36))
    model = load_niqe(path)
    np.testing.assert_array_equal(model.mean, np.arange(36))
    np.testing.assert_array_equal(model.covariance, np.eye(36))
    np.savez(path, mu_pris_param=np.zeros(18), cov_pris_param=np.eye(18))
    text = tmp_path / "text.npz"
    text.write_text("no arrays here")
    for wrong in (path, text, tmp_path / "absent.npz"):
        with pytest.raises(ValueError, match=rf"{wrong.name}: expected BasicSR's"):
            load_niqe(wrong)
