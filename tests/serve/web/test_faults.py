"""What the page says when something is wrong, and that it goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from pixdec.latents import Latent
from tests.serve.web.stub import Stub
from tests.serve.web.test_page import Visit, choose, say, settled

if TYPE_CHECKING:
    from playwright.sync_api import Page


def offer(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)


def test_no_image_too_large_and_too_heavy(
    visit: Visit, stub: Stub, photograph: Callable[..., Path], tmp_path: Path
) -> None:
    stub.limits = {"pixels": 1_000_000, "bytes": 100_000}
    page = visit()
    (tmp_path / "notes.txt").write_text("no image")
    offer(page, tmp_path / "notes.txt")
    say(page, "notes.txt is not an image")
    offer(page, photograph("large.png", (400, 400)))
    say(page, "2.6 megapixels, more than the 1.0 megapixels")
    (tmp_path / "heavy.bin").write_bytes(bytes(200_000))
    offer(page, tmp_path / "heavy.bin")
    say(page, "200 kB; this server takes 100 kB")
    assert stub.asked == []
    choose(page, photograph())  # nothing hangs
    settled(page)


def test_an_image_of_more_pixels_than_a_browser_holds(visit: Visit, stub: Stub, tmp_path: Path) -> None:
    page = visit()
    Image.new("1", (16_000, 16_000)).save(tmp_path / "map.png")  # 1 GB, were it decoded
    offer(page, tmp_path / "map.png")
    say(page, "4096 megapixels, more than the 17 megapixels of this server")
    assert stub.asked == []


def test_damaged_files(visit: Visit, stub: Stub, photograph: Callable[..., Path], tmp_path: Path) -> None:
    page = visit(quiet=True)
    (tmp_path / "half.jpg").write_bytes(photograph("whole.jpg", (900, 600)).read_bytes()[:200])
    offer(page, tmp_path / "half.jpg")
    say(page, "half.jpg is not an image")
    (tmp_path / "noise.safetensors").write_bytes(bytes(range(256)))
    offer(page, tmp_path / "noise.safetensors")
    say(page, "noise.safetensors is not a latent")
    Latent(torch.zeros(1, 16, 4, 4), "sd3", statistics=False).save(tmp_path / "other.safetensors")
    stub.nano = False
    page.reload()
    page.locator("#download").wait_for()
    offer(page, tmp_path / "other.safetensors")
    say(page, "No model of this server decodes latents of sd3")
    assert {each["kind"] for each in stub.asked} == {"upscale"}


def test_a_reload_brings_the_same_state_back(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit()
    choose(page, photograph())
    settled(page)
    page.locator("#steps").fill("3")
    settled(page)
    page.get_by_label("Size", exact=True).select_option("2")
    page.locator("#facts", has_text="192 × 128").wait_for()
    page.get_by_label("Lens").check()
    page.locator("#zooms").get_by_text("200 %").click()
    page.get_by_role("button", name="Lens at").press("Shift+ArrowLeft")
    told = """[...document.querySelectorAll("input:not([type=file]), select")]
        .map(each => each.type === "radio" ? each.checked : each.value)"""
    before, where = page.evaluate(told), page.url
    page.reload()
    page.locator("#facts", has_text="192 × 128").wait_for()
    page.locator("pix-compare:not([busy])").wait_for()
    assert page.evaluate(told) == before
    assert page.url == where
    assert "at 40 % across" in page.locator(".lens").get_attribute("aria-label")
    assert stub.asked[-1] == stub.asked[-2]


def test_a_full_queue_and_a_server_that_loads_are_asked_again(
    visit: Visit, stub: Stub, photograph: Callable[..., Path]
) -> None:
    stub.refuse, stub.loaded = [(503, "loading"), (429, "full")], False
    page = visit(quiet=True)
    choose(page, photograph())
    say(page, "it loads the decoder")
    say(page, "too much to do. Trying again in 1 s")
    settled(page)
    assert "steps" not in stub.asked[0]
    assert page.locator(".tag.right").inner_text() == "pixdec-nano, 1 step"


def test_a_server_that_is_gone_and_comes_back(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit(quiet=True)
    page.route("**/v1/upscale", lambda route: route.abort())
    choose(page, photograph())
    say(page, "The server does not answer.")
    page.unroute("**/v1/upscale")
    page.get_by_role("button", name="Try again").click()
    settled(page)


def test_a_server_that_goes_in_the_middle(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit(quiet=True)
    page.route("**/events", lambda route: route.abort())
    choose(page, photograph())
    say(page, "The server does not answer.")
    assert page.locator(".tag.left").inner_text() == "Input"  # what was given is still there
    page.unroute("**/events")
    page.get_by_role("button", name="Try again").click()
    settled(page)


def test_a_stream_that_breaks_is_opened_again(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit("steps=4", quiet=True)
    stub.break_streams = 2
    choose(page, photograph())
    settled(page)
    assert len(stub.asked) == 2


def test_a_decode_that_fails_and_a_result_that_is_gone(
    visit: Visit, stub: Stub, photograph: Callable[..., Path]
) -> None:
    stub.fail = "not enough memory for 384 x 256"
    page = visit(quiet=True)
    choose(page, photograph())
    say(page, "not enough memory for 384 x 256. Try again, or choose a smaller image.")
    stub.fail, stub.expired = "", True
    page.get_by_role("button", name="Try again").click()
    say(page, "no longer has this result")
    stub.expired = False
    page.get_by_role("button", name="Try again").click()
    settled(page)


def test_an_error_of_the_server_is_shown_in_its_words(
    visit: Visit, stub: Stub, photograph: Callable[..., Path]
) -> None:
    stub.refuse = [(400, "seed=-1: expected 0 or more")]
    page = visit(quiet=True)
    choose(page, photograph())
    say(page, "seed=-1: expected 0 or more")


def test_a_server_with_a_key_asks_for_it(visit: Visit, stub: Stub) -> None:
    stub.key = "secret"
    page = visit(ready=False, quiet=True)
    page.get_by_label("Key", exact=True).fill("secret")
    page.get_by_role("button", name="Use it").click()
    page.locator("#download").wait_for()
