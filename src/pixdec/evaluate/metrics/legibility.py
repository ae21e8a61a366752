"""Can small text still be read? The share of its words that Tesseract reads."""

import difflib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from pixdec.evaluate.metrics.fidelity import Picture, as_array


def find_tesseract() -> str:
    """The command. ValueError when it is not installed."""
    if found := shutil.which("tesseract"):
        return found
    raise ValueError("legibility: Tesseract is not installed; apt-get install tesseract-ocr")


def read_text(image: Picture) -> str:
    """What Tesseract reads in an 8-bit RGB image (H, W, 3), as one block of text. ValueError when it fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "page.png"
        Image.fromarray(as_array(image)).save(path)
        done = subprocess.run(
            [find_tesseract(), str(path), "-", "--psm", "6"],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_THREAD_LIMIT": "1"},
        )
    if done.returncode:
        raise ValueError(f"tesseract failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    return done.stdout


def legibility(image: Picture, text: str) -> float:
    """The share of the text's words that are read whole and in their order, 0 to 1. ValueError: no word, no engine."""
    words = text.split()
    if not words:
        raise ValueError("legibility: the text has no word")
    matcher = difflib.SequenceMatcher(None, words, read_text(image).split(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(words)
