"""The blind pairs: verdicts on numbered sheets become the judge's rounds, whoever that is."""

from pathlib import Path

import pytest
from PIL import Image

from scripts.pairs import RIVALS, merge


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pieces of ours, black, and of both rivals."""
    for method, gray in (("ours", 0), (RIVALS[0], 90), (RIVALS[1], 180)):
        for index in range(3):
            file = tmp_path / method / "sky" / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (256, 256), (gray, gray, index)).save(file)
    return tmp_path


def test_verdicts_of_a_model_are_filed_as_a_models(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "answers.txt").write_text("00 A\n01: b\n02\n03 A\n04 A\n05 B\n")
    merge(folder, "reader", folder / "answers.txt", "model")
    table = capsys.readouterr().out
    assert table.count("| model:reader |") == 2  # a line for each rival
    assert "human" not in table


def test_what_is_no_verdict_is_named(folder: Path) -> None:
    (folder / "answers.txt").write_text("00 A\n01 left\n")
    with pytest.raises(ValueError, match=r"'01 left'; expected the number of a pair"):
        merge(folder, "anna", folder / "answers.txt")
