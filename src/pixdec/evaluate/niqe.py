"""NIQE, a figure without a reference: how far the statistics of an image's patches lie from those of good photographs.

Mittal, Soundararajan, Bovik, "Making a completely blind image quality analyzer", 2013. Lower is better.

The published pristine model is not used. Ours is fitted on freely licensed photographs and ships beside this file; it
is made by `python -m pixdec.evaluate.niqe fit FOLDER OUT.safetensors`. So these figures rank images among themselves,
and NOTE goes wherever one is shown.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from PIL import Image

from pixdec.evaluate.metrics import Floats, Picture, luma
from pixdec.io.files import replacing

NOTE = "NIQE with this project's own pristine model: it does not compare with published NIQE figures"

PATCH = 96  # side at the first scale; half of it at the second
FEATURES = 36  # 18 at each of two scales
SHARPNESS = 0.75  # T: photographs give only patches at least this sharp, relative to their sharpest
WINDOW_RADIUS = 3  # 7x7 Gaussian window
WINDOW_SIGMA = 7 / 6
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))  # (down, right): horizontal, vertical, the two diagonals
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BUNDLED = Path(__file__).with_name("niqe_photos.safetensors")


@dataclass(frozen=True)
class NiqeModel:
    """A multivariate Gaussian over the features of good photographs, and what it was fitted on."""

    mean: Floats  # (36,)
    covariance: Floats  # (36, 36)
    about: dict[str, str]

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, whole or not at all. OSError when it cannot be written."""
        from safetensors.numpy import save

        tensors = {"mean": self.mean, "covariance": self.covariance}
        with replacing(path) as temporary:
            temporary.write_bytes(save(tensors, metadata={**self.about, "pixdec": "niqe"}))

    @classmethod
    def load(cls, path: str | Path) -> NiqeModel:
        """Read what `save` wrote. ValueError when the file is missing or something else."""
        from safetensors import SafetensorError, safe_open

        try:
            with cast("Any", safe_open(path, framework="numpy")) as file:
                about: dict[str, str] = dict(file.metadata() or {})
                tensors: dict[str, Floats] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} cannot be read as a NIQE model: {error}") from error
        if about.pop("pixdec", None) != "niqe" or set(tensors) != {"mean", "covariance"}:
            raise ValueError(f"{path} is not a NIQE model: make one with python -m pixdec.evaluate.niqe fit")
        model = cls(tensors["mean"], tensors["covariance"], about)
        if model.mean.shape != (FEATURES,) or model.covariance.shape != (FEATURES, FEATURES):
            raise ValueError(f"{path} has {model.mean.shape[0]} features: expected {FEATURES}; fit it again")
        return model


@cache
def bundled_model() -> NiqeModel:
    """The pristine model that ships with the package."""
    return NiqeModel.load(BUNDLED)


def niqe(image: Picture, model: NiqeModel | None = None) -> float:
    """The distance of one 8-bit RGB image (H, W, 3) from good photographs, those of the bundled model by default.

    D = sqrt((ν1 - ν2)ᵀ ((Σ1 + Σ2) / 2)⁻¹ (ν1 - ν2))   (eq. 10), with ν1, Σ1 the model's mean and covariance of the
    features and ν2, Σ2 those of all 96x96 patches of the image. Pixels right of and below the last whole patch do not
    count, nor do patches that are perfectly flat, which have no statistics. ValueError when fewer than two patches are
    left.
    """
    model = model or bundled_model()
    features = image_features(image)
    if len(features) < 2:
        raise ValueError(
            f"{len(features)} usable {PATCH}x{PATCH} patches: NIQE needs 2; give a larger image, not a flat one"
        )
    difference: Floats = model.mean - features.mean(axis=0)
    covariance: Floats = (model.covariance + np.cov(features, rowvar=False)) / 2
    return float(np.sqrt(difference @ np.linalg.solve(covariance, difference)))


def fit(folder: str | Path) -> NiqeModel:
    """The model of the photographs in a folder (PNG, JPEG, WebP; not its subfolders).

    A photograph gives its patches whose sharpness, the mean of σ(i,j) over the patch, exceeds T = 0.75 of its sharpest
    patch's: what is out of focus says nothing about quality. ν, Σ are the mean and covariance of the features of all
    patches together. ValueError when there are no photographs, one is too small, or the patches are too few for a
    covariance of full rank.
    """
    from pixdec.io.images import read_image

    folder = Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{folder} holds no photographs: expected files ending in {', '.join(SUFFIXES)}")
    digest = hashlib.sha256()
    features: list[Floats] = []
    for path in paths:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
        try:
            full, half = _scales(read_image(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        sharpness = _patches(full[1], PATCH).mean(axis=(1, 2))
        sharp = sharpness > SHARPNESS * sharpness.max()
        features.append(patch_features(_patches(full[0], PATCH)[sharp], _patches(half[0], PATCH // 2)[sharp]))
    every = np.concatenate(features)
    if len(every) <= FEATURES:
        raise ValueError(f"{folder} gives {len(every)} sharp patches: more than {FEATURES} are needed; add photographs")
    about = {
        "fitted_on": "/".join(folder.resolve().parts[-2:]),
        "photographs": str(len(paths)),
        "patches": str(len(every)),
        "sha256": digest.hexdigest(),  # of the SHA-256 digests of the files, in the order of their names
        "method": f"NIQE (Mittal et al. 2013), {PATCH}x{PATCH} patches, T={SHARPNESS}, luma BT.601",
        "note": NOTE,
    }
    return NiqeModel(every.mean(axis=0), np.cov(every, rowvar=False), about)


def image_features(image: Picture) -> Floats:
    """The features (N, 36) of all whole 96x96 patches of an image (H, W, 3) that are not flat, row by row."""
    full, half = _scales(image)
    return patch_features(_patches(full[0], PATCH), _patches(half[0], PATCH // 2))


def patch_features(full: Floats, half: Floats) -> Floats:
    """The features (N, 36) of N patches from their MSCN coefficients at both scales, (N, 96, 96) and (N, 48, 48).

    At each scale 18: shape α and (β_l + β_r)/2 of the coefficients; and for the products of horizontal, vertical and
    two diagonal neighbours α, η, β_l, β_r with the AGGD's mean η = (β_r - β_l) Γ(2/α)/Γ(1/α). Patches without finite
    features are left out.
    """
    features = np.concatenate([_scale_features(full), _scale_features(half)], axis=1)
    return features[np.isfinite(features).all(axis=1)]


def _scale_features(patches: Floats) -> Floats:
    alpha, left, right = fit_aggd(patches.reshape(len(patches), -1))
    columns = [alpha, (left + right) / 2]
    for down, across in NEIGHBOURS:
        here = patches[:, : patches.shape[1] - down, max(0, -across) : patches.shape[2] - max(0, across)]
        there = patches[:, down:, max(0, across) : patches.shape[2] + min(0, across)]
        alpha, left, right = fit_aggd((here * there).reshape(len(patches), -1))
        columns += [alpha, (right - left) * _at_shape(alpha, "mean"), left, right]
    return np.stack(columns, axis=1)  # (N, 18)


def fit_aggd(samples: Floats) -> tuple[Floats, Floats, Floats]:
    """Fit an asymmetric generalised Gaussian to each row of (N, n) by moments (Lasmar, Stitou, Berthoumieu 2009).

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
    shapes, tables = _shape_tables()
    alpha = np.interp(target, tables["ratio"], shapes)
    width = _at_shape(alpha, "width")
    return alpha, left * width, right * width


@cache
def _shape_tables() -> tuple[Floats, dict[str, Floats]]:
    """Functions of the shape α that the fit inverts or evaluates, on a grid fine enough for linear interpolation."""
    shapes = np.arange(0.2, 10.0005, 0.001)
    one, two, three = (np.array([math.lgamma(k / shape) for shape in shapes]) for k in (1, 2, 3))
    tables = {
        "ratio": np.exp(2 * two - one - three),  # rises with α
        "mean": np.exp(two - one),
        "width": np.exp((one - three) / 2),
    }
    return shapes, tables


def _at_shape(alpha: Floats, table: str) -> Floats:
    shapes, tables = _shape_tables()
    return np.interp(alpha, shapes, tables[table])


def _scales(image: Picture) -> tuple[tuple[Floats, Floats], tuple[Floats, Floats]]:
    """MSCN coefficients and σ of the luma, cropped to whole patches, at full and at half size (bicubic)."""
    y = luma(image)
    height, width = (side - side % PATCH for side in y.shape)
    if height == 0 or width == 0:
        raise ValueError(f"image of {y.shape[1]}x{y.shape[0]}: NIQE needs sides of at least {PATCH}")
    y = y[:height, :width]
    half = Image.fromarray(y.astype(np.float32)).resize((width // 2, height // 2), Image.Resampling.BICUBIC)
    return mscn(y), mscn(np.asarray(half, dtype=np.float64))


def mscn(y: Floats) -> tuple[Floats, Floats]:
    """Mean-subtracted, contrast-normalised coefficients of a luma plane (H, W) in [0, 255], and σ; both (H, W).

    Î = (I - μ)/(σ + 1) with μ and σ² the mean and variance in a 7x7 Gaussian window of standard deviation 7/6 (eq. 1 to
    3); beyond the border the nearest pixel is repeated.
    """
    mean = _smooth(y)
    deviation = np.sqrt(np.maximum(_smooth(y * y) - mean * mean, 0))
    return (y - mean) / (deviation + 1), deviation


def _smooth(plane: Floats) -> Floats:
    taps = np.exp(-(np.arange(-WINDOW_RADIUS, WINDOW_RADIUS + 1) ** 2) / (2 * WINDOW_SIGMA**2))
    taps /= taps.sum()
    height, width = plane.shape
    padded = np.pad(plane, WINDOW_RADIUS, mode="edge")
    rows = sum((tap * padded[k : k + height] for k, tap in enumerate(taps)), np.zeros(()))
    return sum((tap * rows[:, k : k + width] for k, tap in enumerate(taps)), np.zeros(()))


def _patches(plane: Floats, side: int) -> Floats:
    """(H, W) -> (N, side, side), row by row; H and W are multiples of side."""
    rows, columns = plane.shape[0] // side, plane.shape[1] // side
    return plane.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, side, side)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: `fit FOLDER OUT` makes a model, `score FILE...` prints figures. 0, or 2 and a line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m pixdec.evaluate.niqe", description=NOTE)
    verbs = parser.add_subparsers(dest="verb", required=True)
    fitting = verbs.add_parser("fit", help="fit a pristine model on a folder of good photographs")
    fitting.add_argument("folder", type=Path)
    fitting.add_argument("out", type=Path)
    scoring = verbs.add_parser("score", help="print the NIQE of images")
    scoring.add_argument("files", type=Path, nargs="+")
    scoring.add_argument("--model", type=Path, default=BUNDLED, help="a fitted model; the bundled one if absent")
    options = parser.parse_args(arguments)
    try:
        if options.verb == "fit":
            model = fit(options.folder)
            model.save(options.out)
            print(f"{options.out}: {model.about['patches']} patches of {model.about['photographs']} photographs")
        else:
            _score(options.files, NiqeModel.load(options.model))
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _score(files: Sequence[Path], model: NiqeModel) -> None:
    from pixdec.io.images import read_image

    scores = [niqe(read_image(path), model) for path in files]
    for path, score in zip(files, scores, strict=True):
        print(f"{score:.3f}  {path.name}")
    print(f"{np.mean(scores):.3f}  mean of {len(scores)}  ({NOTE})")


if __name__ == "__main__":
    sys.exit(main())
