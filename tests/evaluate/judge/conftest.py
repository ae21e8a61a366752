"""A stub of an OpenAI-compatible endpoint on this machine, and folders of small images to judge."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import ImageFilter

sys.path.insert(0, str(Path(__file__).parent))
from judge_stub import Stub, picture, serving


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serving() as stub:
        yield stub


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four noisy pictures, and a softer copy of each."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    for seed in range(4):
        picture(seed).save(ours / f"{seed}.png")
        picture(seed).filter(ImageFilter.GaussianBlur(1)).save(theirs / f"{seed}.png")
    return ours, theirs
