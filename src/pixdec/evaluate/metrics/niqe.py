"""NIQE, a figure without a reference: how far the statistics of an image's patches lie from those of good photographs.

Mittal, Soundararajan, Bovik, "Making a completely blind image quality analyzer", 2013. Lower is better. The model of
good photographs is the published one, which the package `basicsr` carries.
"""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from pixdec.evaluate.metrics.fidelity import Floats, Picture, as_array
from pixdec.evaluate.metrics.packages import packaged

PATCH = 96  # side at the first scale; half of it at the second
FEATURES = 36  # 18 at each of two scales
WINDOW_RADIUS = 3  # 7x7 Gaussian window
WINDOW_SIGMA = 7 / 6
SHAPES = np.arange(0.2, 10.0005, 0.001)  # fine enough to interpolate
NEIGHBORS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right): horizontal, vertical, the two diagonals
# Y of ITU-R BT.601 in studio range, which the published model is fitted on.
STUDIO = np.array([65.481, 128.553, 24.966]) / 255


@dataclass(frozen=True)
class NiqeModel:
    """A multivariate Gaussian over the features of good photographs."""

    mean: Floats  # (36,)
    covariance: Floats  # (36, 36)


def load_niqe(path: str | Path | None = None) -> NiqeModel:
    """The model in an `.npz` file of BasicSR's; None finds the published one, which PIXDEC_NIQE names or the installed
    package holds.

    Raises:
        ValueError: the package is not installed, or the file is missing or something else.
    """
    path = path or os.environ.get("PIXDEC_NIQE")
    path = path or packaged(
        "basicsr", "metrics/niqe_pris_params.npz", "NIQE's published model (or name its .npz by PIXDEC_NIQE)"
    )
    try:
        with np.load(path, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu_pris_param"], arrays["cov_pris_param"]
            return NiqeModel(mean.reshape(FEATURES), covariance.reshape(FEATURES, FEATURES))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: expected BasicSR's niqe_pris_params.npz ({error})") from None


published = cache(load_niqe)


def niqe(image: Picture, model: NiqeModel | None = None) -> float:
    """The distance of one 8-bit RGB image (H, W, 3) from good photographs, those of the published model by default.

    D = sqrt((ν1 - ν2)ᵀ ((Σ1 + Σ2) / 2)⁻¹ (ν1 - ν2))   (eq. 10), with ν1, Σ1 the model's mean and covariance of the
    features and ν2, Σ2 those of all 96x96 patches of the image. Pixels right of and below the last whole patch do not
    count, nor do patches that are perfectly flat, which have no statistics. ValueError when fewer than two patches are
    left, or when the published model is not installed.
    """
    model = model or published()
    features = image_features(image)
    if len(features) < 2:
        raise ValueError(
            f"{len(features)} usable {PATCH}x{PATCH} patches: NIQE needs 2; give a larger image, not a flat one"
        )
    difference: Floats = model.mean - features.mean(axis=0)
    covariance: Floats = (model.covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.solve(covariance, difference)))


def image_features(image: Picture) -> Floats:
    """The features (N, 36) of all whole 96x96 patches of an image (H, W, 3) that are not flat, row by row."""
    y = np.round(16 + as_array(image) @ STUDIO)
    height, width = (side - side % PATCH for side in y.shape)
    if height == 0 or width == 0:
        raise ValueError(f"image of {y.shape[1]}x{y.shape[0]}: NIQE needs sides of at least {PATCH}")
    y = y[:height, :width]
    half = Image.fromarray(y.astype(np.float32)).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return patch_features(_patches(mscn(y), PATCH), _patches(mscn(np.asarray(half, np.float64)), PATCH // 2))


def patch_features(full: Floats, half: Floats) -> Floats:
    """The features (N, 36) of N patches from their MSCN coefficients at both scales, (N, 96, 96) and (N, 48, 48).

    At each scale 18: shape α and (β_l + β_r)/2 of the coefficients; and for the products of horizontal, vertical and
    two diagonal neighbors α, η, β_l, β_r with the AGGD's mean η = (β_r - β_l) Γ(2/α)/Γ(1/α). Patches without finite
    features are left out.
    """
    features = np.concatenate([_scale_features(full), _scale_features(half)], axis=1)
    return features[np.isfinite(features).all(axis=1)]


def _scale_features(patches: Floats) -> Floats:
    alpha, left, right = fit_aggd(patches.reshape(len(patches), -1))
    columns = [alpha, (left + right) / 2]
    for down, across in NEIGHBORS:
        around = np.roll(patches, (down, across), axis=(1, 2))  # wraps, as in the original release
        alpha, left, right = fit_aggd((patches * around).reshape(len(patches), -1))
        one, two, _ = _log_gammas(alpha)
        columns += [alpha, (right - left) * np.exp(two - one), left, right]
    return np.stack(columns, axis=1)  # (N, 18)


def fit_aggd(samples: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit an asymmetric generalized Gaussian to each row of (N, n) by moments (Lasmar, Stitou, Berthoumieu 2009).

    p(x) = α / ((β_l + β_r) Γ(1/α)) · exp(-(|x|/β)^α) with β = β_l for x < 0, β_r otherwise. Returns α, β_l, β_r: (N,).
    With σ_l, σ_r the root mean squares of the negative and of the positive samples and γ = σ_l/σ_r, α solves
        Γ(2/α)² / (Γ(1/α) Γ(3/α)) = (E|x|)²/E[x²] · (γ³ + 1)(γ + 1) / (γ² + 1)²,
    within [0.2, 10], and β = σ sqrt(Γ(1/α)/Γ(3/α)). NaN for a row that lacks samples of either sign.
    """
    squares = samples**2
    negative, positive = samples < 0, samples > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        left = np.sqrt((squares * negative).sum(axis=1) / negative.sum(axis=1))
        right = np.sqrt((squares * positive).sum(axis=1) / positive.sum(axis=1))
        gamma = left / right
        ratio = np.abs(samples).mean(axis=1) ** 2 / squares.mean(axis=1)
        target: Floats = ratio * (gamma**3 + 1) * (gamma + 1) / (gamma**2 + 1) ** 2
    one, two, three = _log_gammas(SHAPES)
    alpha = np.interp(target, np.exp(2 * two - one - three), SHAPES)
    one, _, three = _log_gammas(alpha)
    width = np.exp((one - three) / 2)
    return alpha, left * width, right * width


def _log_gammas(alpha: Floats) -> tuple[Floats, Floats, Floats]:
    """log Γ of 1/α, 2/α, 3/α."""
    from scipy import special

    return cast(Any, special).gammaln(np.array([[1], [2], [3]]) / alpha)


def mscn(y: Floats) -> Floats:
    """Mean-subtracted, contrast-normalized coefficients of a luma plane (H, W) in [0, 255].

    Î = (I - μ)/(σ + 1) with μ and σ² the mean and variance in a 7x7 Gaussian window of standard deviation 7/6 (eq. 1 to
    3); beyond the border the nearest pixel is repeated.
    """
    from scipy import ndimage

    mean, squares = (
        cast(Any, ndimage).gaussian_filter(each, WINDOW_SIGMA, mode="nearest", radius=WINDOW_RADIUS)
        for each in (y, y * y)
    )
    return (y - mean) / (np.sqrt(np.maximum(squares - mean * mean, 0)) + 1)


def _patches(plane: Floats, side: int) -> Floats:
    """(H, W) -> (N, side, side), row by row; H and W are multiples of side."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    return plane.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, side, side)
