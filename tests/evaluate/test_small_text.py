"""Pages of small text, and whether Tesseract reads them."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from pixdec.evaluate.metrics.packages import legibility
from pixdec.evaluate.photographs import photograph_sources
from pixdec.evaluate.small_text import SIZES, Script, draw_page, find_scripts, render_pages

PILLOW = Script("", "latin")


def test_the_same_seed_gives_the_same_pages(tmp_path: Path) -> None:
    pages = render_pages(tmp_path / "a", 9)
    assert [page.name for page in pages] == sorted(page.name for page in pages)
    assert {int(page.name[:2]) for page in pages} == set(SIZES)
    assert len({page.name.partition("/")[2] for page in render_pages(tmp_path / "c", 4, sizes=(24, 32))}) == 4
    again = render_pages(tmp_path / "b", 9)
    assert [page.path.read_bytes() for page in pages] == [page.path.read_bytes() for page in again]
    assert draw_page(PILLOW, 12, 0)[1] != draw_page(PILLOW, 12, 1)[1]


def test_what_is_written_is_beside_latin_pages_only(tmp_path: Path) -> None:
    from pixdec.evaluate.methods import open_lineup

    pages = render_pages(tmp_path, 1)
    (source,) = photograph_sources(pages, open_lineup(["lanczos"], device="cpu"))
    assert source.has == {"original", "low", "text"}
    assert source.load().text == draw_page(PILLOW, 8, 0)[1]


def test_fonts_that_the_system_lacks_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pixdec.evaluate.small_text.LATIN", ("No Such Font.ttf",))
    monkeypatch.setattr("pixdec.evaluate.small_text.CHINESE", ())
    assert find_scripts() == [PILLOW]


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="Tesseract is not installed")
def test_legibility() -> None:
    image, text = draw_page(PILLOW, 24, 0, (512, 160))
    assert legibility(image, text) > 0.9
    small = image.resize((64, 20)).resize((512, 160))
    assert legibility(small, text) < 0.5
    with pytest.raises(ValueError, match="no word"):
        legibility(Image.new("RGB", (64, 64)), " ")
