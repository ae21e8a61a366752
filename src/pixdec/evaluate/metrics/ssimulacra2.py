"""SSIMULACRA2 (Sneyers 2023), by the package of that name: a distance of images that is not trained on here."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from pixdec.evaluate.metrics.fidelity import Picture, as_pair


def load_ssimulacra2() -> Any:
    """The package. ValueError when it is not installed."""
    try:
        return importlib.import_module("ssimulacra2")
    except ImportError as error:
        raise ValueError("SSIMULACRA2: not installed; `pip install ssimulacra2`") from error


def ssimulacra2(image: Picture, reference: Picture) -> float:
    """How near an 8-bit RGB image (H, W, 3) is to its reference: 100 for identical ones, 90 for hardly visible errors,
    30 for low quality, and below 0.

    ValueError when the sizes differ, or the package is not installed.
    """
    package, pair = load_ssimulacra2(), as_pair(image, reference)
    with tempfile.TemporaryDirectory() as folder:  # it takes files
        paths = [Path(folder) / name for name in ("image.png", "reference.png")]
        for path, each in zip(paths, pair, strict=True):
            Image.fromarray(each).save(path, compress_level=0)
        return float(package.compute_ssimulacra2(str(paths[1]), str(paths[0])))
