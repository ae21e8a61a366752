"""The page on the service itself, with the bundled model."""

import io
import json

import httpx2 as httpx
import pytest
from PIL import Image, ImageChops, ImageStat

from tests.serve.service import picture
from tests.serve.web.stub import WEB
from tests.serve.web.test_page import seen

INDEX = json.loads((WEB / "examples/index.json").read_text())["examples"]


def test_what_stands_beside_the_divider_is_what_the_service_answers(browser, url, client, tmp_path):
    (tmp_path / "small.png").write_bytes(picture(40, 24))
    page = browser.new_page(viewport={"width": 900, "height": 700})
    page.set_default_timeout(60_000)
    page.goto(url)
    page.locator("#file").set_input_files(tmp_path / "small.png")
    page.locator("#facts", has_text="40 × 24 → 160 × 96").wait_for()
    page.locator("#zooms").get_by_text("100 %").click()
    page.locator("pix-compare").evaluate("each => each.moveTo(0)")
    page.get_by_label("Flicker").check()
    page.evaluate("for (const tag of document.querySelectorAll('.tag')) tag.style.display = 'none'")
    shown = seen(page)
    answer = client.post("/v1/upscale", files={"image": picture(40, 24)}, data={"model": "pixdec-nano"})
    assert shown.size == (160, 96)
    difference = ImageChops.difference(shown, Image.open(io.BytesIO(answer.content)).convert("RGB"))
    assert max(ImageStat.Stat(difference).mean) < 0.1
    page.close()


def test_the_python_that_the_page_shows_makes_what_the_page_shows(browser, url, tmp_path, monkeypatch):
    (tmp_path / "small.png").write_bytes(picture(40, 24))
    page = browser.new_page(accept_downloads=True)
    page.set_default_timeout(60_000)
    page.goto(f"{url}/#strength=0.3&seed=3&scale=3")
    page.locator("#download").wait_for()
    page.locator("#file").set_input_files(tmp_path / "small.png")
    page.locator("#facts", has_text="40 × 24 → 120 × 72").wait_for()
    with page.expect_download() as download:
        page.locator("#download").click()
    monkeypatch.chdir(tmp_path)
    exec(page.locator("#python").text_content(), {})
    made, shown = Image.open("small-3x.png"), Image.open(download.value.path())
    page.close()
    assert max(ImageStat.Stat(ImageChops.difference(made, shown)).mean) < 0.1


@pytest.mark.parametrize("stop", INDEX[-1]["stops"], ids=lambda stop: str(stop["sigma"]))
def test_the_latents_of_the_examples_are_decoded(client: httpx.Client, stop):
    data = (WEB / "examples" / stop["file"]).read_bytes()
    answer = client.post("/v1/decode", files={"latent": data}, data={"steps": "1"})
    assert answer.status_code == 200, answer.text
    assert Image.open(io.BytesIO(answer.content)).size == (4 * INDEX[-1]["width"], 4 * INDEX[-1]["height"])


def test_the_first_example_is_as_the_bundled_model_decodes_it(client: httpx.Client):
    """If not, the model is another: `python -m scripts.page_examples`."""
    first = INDEX[0]
    data = (WEB / "examples" / first["file"]).read_bytes()
    answer = client.post(
        "/v1/upscale", files={"image": data}, data={"seed": "0", "steps": str(first["result"]["steps"])}
    )
    kept = Image.open(WEB / "examples" / first["result"]["file"])
    difference = ImageChops.difference(kept, Image.open(io.BytesIO(answer.content)).convert("RGB"))
    assert max(ImageStat.Stat(difference).mean) < 6


def test_a_browser_asks_whether_the_page_is_another_since(client: httpx.Client):
    answer = client.get("/page/main.js")
    assert answer.headers["cache-control"] == "no-cache"
    assert client.get("/page/main.js", headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_the_photographs_are_free_and_all_is_small():
    files = list((WEB / "examples").iterdir())
    assert sum(file.stat().st_size for file in files) <= 300_000
    assert all(each["credit"].startswith("CC0") for each in INDEX)
    assert all((WEB / "examples" / each["file"]) in files for each in INDEX)
