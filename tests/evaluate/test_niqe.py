"""NIQE: the distribution fit against known parameters, features of hand-made patches, a photograph's figure."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from pixdec.evaluate import niqe as module
from pixdec.evaluate.niqe import (
    FEATURES,
    NiqeModel,
    bundled_model,
    fit,
    fit_aggd,
    image_features,
    mscn,
    niqe,
    patch_features,
)

SHARED = Path(__file__).resolve().parents[2] / "../shared"
PHOTOS = SHARED / "photos"
needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="../shared/photos is absent")


def aggd_samples(alpha: float, left: float, right: float, count: int) -> np.ndarray:
    """Draws from an asymmetric generalised Gaussian: |x| = β·G^(1/α), G gamma-distributed, sides in proportion to β."""
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
    coefficients, deviation = mscn(np.full((20, 30), 77.0))
    assert np.abs(coefficients).max() < 1e-6
    assert np.abs(deviation).max() < 1e-4
    _, deviation = mscn(np.random.default_rng(0).normal(128, 20, (200, 200)))
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * (7 / 6) ** 2))
    kept = 1 - (np.sum((taps / taps.sum()) ** 2)) ** 2  # of the variance: the window's own mean takes the rest
    assert np.mean(deviation**2) == pytest.approx(400 * kept, rel=0.02)


def test_features_of_independent_normal_coefficients() -> None:
    """White Gaussian patches: shape 2, width √2; products of neighbours are symmetric, so η = 0 and β_l = β_r."""
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
    """Each neighbour pair sees correlation (η > 0) along its own direction."""
    rng = np.random.default_rng(4)
    source = rng.normal(size=(4, 97, 98))
    core = (slice(None), slice(0, 96), slice(1, 97))
    moved = {  # each pixel plus its neighbour: right, below, below right, below left
        0: source[:, 0:96, 2:98],
        1: source[:, 1:97, 1:97],
        2: source[:, 1:97, 2:98],
        3: source[:, 1:97, 0:96],
    }
    for direction, neighbour in moved.items():
        full = source[core] + neighbour
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
    model = NiqeModel(features.mean(axis=0) + step, spread, {})
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
        niqe(random_image(*size))


def test_flat_image() -> None:
    with pytest.raises(ValueError, match="0 usable"):
        niqe(Image.new("RGB", (300, 300), (9, 9, 9)))


def test_pixels_outside_whole_patches_do_not_count() -> None:
    image = random_image(256, 320)
    assert niqe(image) == niqe(image.crop((0, 0, 288, 192)))


@needs_photos
@pytest.mark.parametrize("name", ["perched-osprey-cfa488.webp", "sydney-838537.webp", "tea-gardens-d34ba3.webp"])
def test_damage_raises_the_figure(name: str) -> None:
    photo = Image.open(PHOTOS / "val" / name).convert("RGB")
    left, top = (photo.width - 768) // 2, (photo.height - 512) // 2
    photo = photo.crop((left, top, left + 768, top + 512))
    good = niqe(photo)
    assert good < 7
    blurred = [niqe(photo.filter(ImageFilter.GaussianBlur(radius))) for radius in (1.5, 4)]
    assert good + 1 < blurred[0] < blurred[1]
    pixels = np.asarray(photo).astype(float)
    noisy = np.clip(pixels + np.random.default_rng(1).normal(0, 25, pixels.shape), 0, 255).astype(np.uint8)
    assert niqe(noisy) > good + 1
    small = photo.resize((192, 128), Image.Resampling.BICUBIC)
    assert niqe(small.resize(photo.size, Image.Resampling.LANCZOS)) > good + 1


def test_bundled_model_is_a_proper_gaussian() -> None:
    model = bundled_model()
    assert np.isfinite(model.mean).all()
    np.testing.assert_allclose(model.covariance, model.covariance.T, rtol=1e-9)
    assert np.linalg.eigvalsh(model.covariance).min() > 0
    assert int(model.about["patches"]) > 1000
    assert model.about["note"] == module.NOTE


@needs_photos
def test_bundled_model_names_the_photographs() -> None:
    """The digest in the file is that of the training photographs: a changed folder asks for a new fit."""
    paths = sorted((PHOTOS / "train").iterdir())
    digest = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in paths)).hexdigest()
    assert bundled_model().about["sha256"] == digest
    assert bundled_model().about["photographs"] == str(len(paths))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images of 48 patches each."""
    folder = tmp_path_factory.mktemp("photos")
    random_image(576, 768).save(folder / "a.png")
    random_image(768, 576).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(folder / "b.PNG")
    (folder / "notes.txt").write_text("not a photograph")
    return folder


def test_fit_saves_and_loads(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "model.safetensors"
    assert module.main(["fit", str(folder), str(out)]) == 0
    assert "2 photographs" in capsys.readouterr().out
    model, again = NiqeModel.load(out), fit(folder)
    np.testing.assert_array_equal(model.mean, again.mean)
    np.testing.assert_array_equal(model.covariance, again.covariance)
    assert model.about == again.about
    assert model.about["photographs"] == "2"
    # The images it was fitted on are nearer to it than to photographs.
    image = Image.open(folder / "a.png")
    assert niqe(image, model) < niqe(image) / 2


def test_fit_leaves_out_blurred_patches(folder: Path, tmp_path: Path) -> None:
    whole = fit(folder)
    for name in ("a.png", "b.PNG"):
        image = Image.open(folder / name)
        image.paste(image.crop((0, 0, 384, 288)).filter(ImageFilter.GaussianBlur(8)), (0, 0))
        image.save(tmp_path / name)
    assert int(whole.about["patches"]) - int(fit(tmp_path).about["patches"]) in range(20, 29)  # of 12 + 12 blurred ones


def test_fit_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="holds no photographs"):
        fit(tmp_path)
    random_image(96, 192).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="more than 36"):
        fit(tmp_path)
    random_image(64, 192).save(tmp_path / "b.png")
    assert module.main(["fit", str(tmp_path), str(tmp_path / "out.safetensors")]) == 2
    error = capsys.readouterr().err
    assert "b.png" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out.safetensors").exists()


def test_load_refuses_other_files(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(ValueError, match="cannot be read"):
        NiqeModel.load(tmp_path / "absent.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ValueError, match="cannot be read"):
        NiqeModel.load(tmp_path / "text.safetensors")
    save_file({"mean": np.zeros(36), "covariance": np.eye(36)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a NIQE model"):
        NiqeModel.load(tmp_path / "other.safetensors")
    NiqeModel(np.zeros(18), np.eye(18), {}).save(tmp_path / "half.safetensors")
    with pytest.raises(ValueError, match="18 features: expected 36"):
        NiqeModel.load(tmp_path / "half.safetensors")


def test_score_says_that_it_does_not_compare(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert module.main(["score", str(folder / "a.png")]) == 0
    out = capsys.readouterr().out
    assert "does not compare with published" in out
    assert f"{niqe(Image.open(folder / 'a.png')):.3f}" in out
