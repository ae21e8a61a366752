"""Small folders of photographs, and shards of them, for the tests of what training reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from pixdec.train.data.pack import PackSettings, Progress, pack


def photograph(path: Path, width: int = 40, height: int = 40, seed: int = 0) -> Path:
    """Write a smooth coloured picture of its own for each seed; the format is that of the suffix."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def folder_of(folder: Path, count: int, sides: tuple[tuple[int, int], ...] = ((40, 40),)) -> Path:
    """A folder with so many photographs as PNG, of these sizes in turn."""
    for i in range(count):
        photograph(folder / f"{i:03}.png", *sides[i % len(sides)], seed=i)
    return folder


def packed(source: Path, output: Path, settings: PackSettings | None = None, **more: object) -> Progress:
    """Pack to the end."""
    return list(pack([source], output, settings, **more))[-1]


def contents(folder: Path) -> Mapping[str, bytes]:
    """All files below a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
