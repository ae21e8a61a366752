"""The page for a person in a real browser: the keys 1 and 2, images at 100 %, the end."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from judge_stub import picture

from pixdec.evaluate.judge.human import Session, serve
from pixdec.evaluate.judge.pairs import Views, find_pairs
from pixdec.evaluate.judge.rates import summarize
from pixdec.evaluate.judge.rounds import read_rounds

playwright: Any = pytest.importorskip("playwright.sync_api")
DETAIL = """image => { const canvas = document.createElement("canvas"), pen = canvas.getContext("2d");
canvas.width = image.naturalWidth; canvas.height = image.naturalHeight; pen.drawImage(image, 0, 0);
return pen.getImageData(0, 0, canvas.width, canvas.height).data.reduce(
  (sum, value, index, all) => sum + Math.abs(value - (all[index + 4] ?? value)), 0); }"""


def test_keys_and_pixels(folders: tuple[Path, Path], tmp_path: Path) -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        pytest.skip("no browser is installed")
    for folder in folders:
        picture(0, 660, 80).save(folder / "large.png")
    session = Session(find_pairs(folders[0], [folders[1]]), "anna", tmp_path / "judge.jsonl", Views(0, 1, 640))
    address, ready = list[str](), threading.Event()
    server = threading.Thread(
        target=serve, args=(session, 0, lambda url: (address.append(url), ready.set())), daemon=True
    )
    server.start()
    assert ready.wait(5)
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 800}, device_scale_factor=2)
        page.set_default_timeout(10_000)
        wrong = list[str]()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address[0])
        for _ in range(5):
            page.wait_for_function("[...document.images].every(i => i.complete && i.naturalWidth && i.style.width)")
            images = page.query_selector_all("img")
            shown = [(image.bounding_box()["width"] * 2, image.evaluate("i => i.naturalWidth")) for image in images]
            assert all(wide == pytest.approx(natural, abs=1) for wide, natural in shown)  # a pixel is a pixel
            detail = [image.evaluate(DETAIL) for image in images]
            before = page.url
            page.keyboard.press("7")  # not a choice
            page.keyboard.press("1" if detail[0] >= detail[1] else "2")
            page.wait_for_url(lambda url, before=before: url != before, timeout=5000)
        page.wait_for_selector("h1")
        assert page.inner_text("h1") == "Done"
        browser.close()
    server.join(5)
    assert not server.is_alive()
    assert wrong == []
    small = [each for each in read_rounds(tmp_path / "judge.jsonl") if each.pair != "large"]
    assert [each.won for each in small] == [True] * 4
    assert summarize(tmp_path)["rows"][0]["valid"] == 5
