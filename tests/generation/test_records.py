"""generation.records: what an output says of itself, and whether it is the one that would be made."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from pixdec.generation.records import difference, fingerprint, is_made, record_of
from pixdec.io.images import read_settings, save_image

ASKED: dict[str, object] = {"seed": 3, "steps": None, "stop": "auto", "size": None}


def saved(path: Path, verb: str = "upscale", done: dict[str, object] | None = None) -> Path:
    done = {"steps": 4, "stop": 24} if done is None else done
    save_image(Image.new("RGB", (4, 4)), path, settings=record_of(verb, ASKED, done))
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_what_was_done_is_saved_and_what_was_asked_compared(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a{suffix}")
    settings = read_settings(path)
    assert settings.items() >= {"seed": 3, "steps": 4, "stop": 24, "asked": {"steps": None, "stop": "auto"}}.items()
    assert "size" not in settings
    assert is_made(path, "upscale", ASKED)
    assert not is_made(tmp_path / "b.png", "upscale", ASKED)
    assert not is_made(path, "decode", ASKED)
    assert difference(path, "upscale", {**ASKED, "seed": 4}) == "was made with seed 3, not 4"
    assert difference(path, "upscale", {**ASKED, "steps": 4}) == "was made with steps None, not 4"
    assert difference(path, "upscale", {**ASKED, "size": "2x2"}) == "was made with size None, not '2x2'"


def test_a_file_of_someone_else(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_text("no image")
    assert "was not made by" in str(difference(tmp_path / "a.png", "upscale", ASKED))
    assert "cannot be read" in str(difference(tmp_path / "b.png", "upscale", ASKED))


def test_a_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    for name, content in (("a", b"x"), ("b", b"x"), ("c", b"y")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (fingerprint(tmp_path / name) for name in "abc")
    assert a == b != c
    assert fingerprint(tmp_path) not in (a, b, c)
