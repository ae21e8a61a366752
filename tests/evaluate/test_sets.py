"""Distances of sets of images: against closed forms, torchmetrics' own, and a real network where it is installed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixdec.evaluate.sets import Features, compare_sets, frechet, kid, open_features

RNG = np.random.default_rng(0)


def test_frechet_of_gaussians() -> None:
    """Of diagonal Gaussians: |Δμ|² + Σ (σ_a − σ_b)²."""
    a, b = RNG.normal(0, 1, (40000, 3)), RNG.normal(0, 1, (40000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert frechet(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.03)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("count", [6, 60])
def test_frechet_is_the_textbooks(count: int) -> None:
    """With the square root of a matrix, by scipy; also of fewer samples than dimensions."""
    linalg = pytest.importorskip("scipy.linalg")
    a, b = RNG.normal(size=(count, 10)), 2 * RNG.normal(size=(count + 3, 10)) + 1
    one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(one @ other).real
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(one + other - 2 * root)
    assert frechet(a, b) == pytest.approx(expected, rel=1e-3)


def test_kid_is_the_textbooks() -> None:
    a, b = RNG.normal(size=(7, 5)), RNG.normal(size=(9, 5)) + 0.5

    def kernel(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within = [np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]) for x in (a, b)]
    across = np.mean([kernel(x, y) for x in a for y in b])
    assert kid(a, b) == pytest.approx(sum(within) - 2 * across)


def test_patches_are_at_full_size_and_do_not_overlap(tmp_path: Path) -> None:
    levels = np.kron([[10, 20, 30], [40, 50, 60]], np.ones((32, 32))).astype(np.uint8)
    image = Image.fromarray(np.pad(levels, ((0, 5), (0, 9)))[:, :, None].repeat(3, 2))
    mean = Features("mean", "Mean", "", 32, lambda images: images.float().mean((2, 3))[:, :1])
    assert mean.of(image)[1:, 0].tolist() == [10, 20, 30, 40, 50, 60]
    mean.save(image, tmp_path / "a" / "x.npy")
    found = compare_sets([tmp_path / "a" / "x.npy"], [tmp_path / "a" / "x.npy"])
    assert found["images"] == 1
    assert "frechet" not in found
    assert found["patch_frechet"] == pytest.approx(0, abs=1e-6)


def test_networks_by_name() -> None:
    with pytest.raises(ValueError, match="sets 'resnet': expected efficientnet-lite0 or inception"):
        open_features("resnet", torch.device("cpu"))
    try:
        features = open_features("efficientnet-lite0", torch.device("cpu"))
    except ValueError as error:
        assert "pip install" in str(error)
        pytest.skip(str(error))
    assert features.of(Image.new("RGB", (300, 300), "grey")).shape == (2, 1280)
