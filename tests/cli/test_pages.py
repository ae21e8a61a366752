"""Every command that the README and the pages show is one that the program understands."""

import re
import shlex
from pathlib import Path

import pytest

from pixdec.cli import _parse  # pyright: ignore[reportPrivateUsage]

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The arguments of each `pixdec` command of a page, written as a block of code; also those behind torchrun."""
    text = page.read_text().replace("\\\n", " ")
    lines = re.findall(r"^    (?:[\w./]*torchrun .*-m |[A-Z_]+=\S+ )?pixdec (.+)$", text, re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_are_understood(page: Path):
    for arguments in commands(page):
        _parse(arguments)


def test_there_are_such_commands():
    assert len(commands(ROOT / "README.md")) >= 10
    assert ["train", "decoder", "tiny"] in [arguments[:3] for arguments in commands(ROOT / "docs" / "training.md")]
