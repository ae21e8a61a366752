"""The page in a real browser, used as a person uses it, on a stub of the service."""

from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from PIL import Image, ImageChops, ImageStat

from pixdec.latents import Latent
from tests.serve.web.stub import Stub

if TYPE_CHECKING:
    from playwright.sync_api import Page

Visit = Callable[..., "Page"]


def choose(page: Page, path: Path) -> None:
    page.locator("#file").set_input_files(path)
    page.locator("#source", has_text=path.name).wait_for()


def say(page: Page, text: str) -> None:
    page.locator("#status", has_text=text).wait_for()


def settled(page: Page) -> None:
    page.locator("pix-compare:not([busy])").wait_for()
    say(page, "Done in")


def until(page: Page, fact: Callable[[], object]) -> None:
    for _ in range(1000):
        if fact():
            return
        page.wait_for_timeout(50)
    raise AssertionError("it never came true")


def seen(page: Page) -> Image.Image:
    """The picture on the stage, as it is on the screen."""
    return Image.open(io.BytesIO(page.locator(".first .sheet").screenshot())).convert("RGB")


def test_a_comparison_stands_before_anything_is_asked(visit: Visit, stub: Stub) -> None:
    page = visit()
    assert stub.asked == []
    assert page.locator(".tag.left").inner_text() == "Input"
    assert page.locator(".tag.right").inner_text() == "pixdec-nano, 1 step"
    assert page.locator("pix-compare").evaluate("each => each.at") == 50


def test_a_chosen_image_is_decoded_and_its_pixels_stand_beside_the_divider(
    visit: Visit, stub: Stub, photograph: Callable[..., Path]
) -> None:
    page = visit(width=1440, height=900)
    choose(page, photograph())
    settled(page)
    assert stub.asked[0]["kind"] == "upscale"
    assert "96 × 64 → 384 × 256" in page.locator("#facts").inner_text()
    page.locator("#zooms").get_by_text("100 %").click()
    page.locator("pix-compare").evaluate("each => each.moveTo(25)")
    page.mouse.move(1, 1)
    shown, (job,) = seen(page), stub.jobs.values()
    assert shown.size == (384, 256)
    right = (120, 0, 384, 100)  # no handle, no label
    difference = ImageChops.difference(shown.crop(right), job["result"].crop(right))
    assert max(ImageStat.Stat(difference).mean) < 0.5
    left = (0, 0, 80, 100)
    lanczos = job["first"].resize((384, 256), Image.Resampling.BILINEAR).crop(left)
    assert max(ImageStat.Stat(ImageChops.difference(shown.crop(left), lanczos)).mean) < 4


@pytest.mark.parametrize("late", ["/v1/models", "index.json", "colosseum.webp"])
def test_an_image_chosen_while_the_page_still_loads_is_the_one_that_is_shown(
    visit: Visit, stub: Stub, photograph: Callable[..., Path], late: str
) -> None:
    stub.held = late, threading.Event()
    page = visit(ready=False)
    page.locator("#file").set_input_files(photograph())
    stub.held[1].set()
    settled(page)
    page.locator("#gallery img").first.wait_for()
    page.wait_for_timeout(200)  # what came late would show now
    assert "96 × 64 → 384 × 256" in page.locator("#facts").inner_text()
    assert page.locator("#source").inner_text() == "photo.png"
    assert [job["kind"] for job in stub.asked] == ["upscale"]


def test_the_divider_moves_by_keys_and_says_where_in_words(visit: Visit) -> None:
    page = visit()
    divider = page.get_by_role("slider", name="Divider")
    divider.focus()
    for key, at in [
        ("Home", 0),
        ("PageUp", 10),
        ("ArrowRight", 11),
        ("Shift+ArrowLeft", 1),
        ("End", 100),
        ("PageDown", 90),
    ]:
        page.keyboard.press(key)
        assert page.locator("pix-compare").evaluate("each => each.at") == at, key
    assert divider.get_attribute("aria-valuetext") == "Input on the left 90 %, pixdec-nano, 1 step on the right 10 %"
    assert "at=90" in page.url


def test_the_divider_follows_a_pointer_out_of_the_window(visit: Visit) -> None:
    page = visit()
    box = page.locator(".first .sheet").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.7, box["y"] + 300)
    assert page.locator("pix-compare").evaluate("each => each.at") == pytest.approx(70, abs=0.3)
    page.mouse.move(-400, 300)
    assert page.locator("pix-compare").evaluate("each => each.at") == 0
    page.mouse.up()


def test_the_divider_and_the_lens_follow_a_finger(visit: Visit) -> None:
    page = visit(width=390, height=844, has_touch=True, is_mobile=True)
    box = page.locator(".first .sheet").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + 40)
    assert page.locator("pix-compare").evaluate("each => each.at") == pytest.approx(25, abs=0.5)
    page.get_by_label("Lens").check()
    box = page.locator(".first .sheet").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.25, box["y"] + box["height"] * 0.75)
    page.get_by_role("button", name="Lens at 25 % across and 75 % down").wait_for()


def test_modes_show_what_they_say(visit: Visit) -> None:
    page = visit()
    page.get_by_label("Side by side").check()
    assert page.locator(".pane:visible").count() == 2
    page.get_by_label("Flicker").check()
    page.keyboard.press("1")
    first = seen(page)
    page.keyboard.press("2")
    assert ImageStat.Stat(ImageChops.difference(first, seen(page))).mean[0] > 0.2
    page.locator(".first .sheet").click()
    assert page.locator(".tag:visible").all_inner_texts() == ["1 of 2: Input"]
    page.get_by_label("Difference").check()
    assert ImageStat.Stat(seen(page)).mean[2] < 60
    assert page.locator(".tag.right").inner_text() == "Difference × 4"
    assert "mode=difference" in page.url


def test_the_lens_shows_one_region_of_every_picture(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit()
    choose(page, photograph(size=(300, 200)))
    settled(page)
    for steps in ("2", "3", "4"):
        page.locator("#steps").fill(steps)
        page.locator(".tag.right", has_text=re.compile(rf"^pixdec-nano, {steps} step")).wait_for()
    page.get_by_label("Lens").check()
    page.locator("pix-lens figure").nth(5).wait_for()
    captions = page.locator("pix-lens figcaption").all_inner_texts()
    assert captions == ["Input", "Lanczos", *(f"pixdec-nano, {n}" for n in ("1 step", "2 steps", "3 steps", "4 steps"))]
    frame = page.get_by_role("button", name="Lens at")
    frame.focus()
    page.keyboard.press("Shift+ArrowLeft")
    assert "40 % across" in frame.get_attribute("aria-label")
    page.wait_for_timeout(100)
    region = page.evaluate("""() => [...document.querySelectorAll("pix-lens canvas")].map(c =>
        [c.width, ...c.getContext("2d").getImageData(c.width / 2, c.height / 2, 1, 1).data])""")
    left, top = round(0.4 * 1200 - region[0][0] / 2), round(0.5 * 800 - region[0][0] / 2)
    middle = (left + region[0][0] // 2, top + region[0][0] // 2)
    for job, found in zip(stub.jobs.values(), region[2:], strict=True):
        assert found[1:4] == pytest.approx(job["result"].getpixel(middle), abs=3)
    assert region[1][1:4] == pytest.approx(
        stub.jobs["job-0"]["first"].resize((1200, 800), Image.Resampling.LANCZOS).getpixel(middle), abs=3
    )


def test_a_latent_is_decoded_at_each_of_its_noise_levels(visit: Visit, stub: Stub) -> None:
    page = visit()
    page.get_by_role("button", name="Latent").click()
    settled(page)
    assert page.locator(".tag.left").inner_text() == "VAE decode"
    page.get_by_label("Noise of the latent").fill("2")
    page.locator("output[for=stop]", has_text="σ 0.2").wait_for()
    page.wait_for_url(re.compile("stop=2"))
    page.locator("pix-compare:not([busy])").wait_for()
    assert [each["kind"] for each in stub.asked] == ["decode", "decode"]
    assert "lighthouse-0.2.safetensors" in page.locator("#python").text_content()
    page.get_by_label("Noise of the latent").fill("0")  # kept: not decoded again
    page.locator("pix-compare:not([busy])").wait_for()
    assert len(stub.asked) == 2


def test_previews_progress_and_cancel(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit("steps=4")
    stub.hold_after = 1
    choose(page, photograph())
    say(page, "Step 1 of 4")
    page.locator(".tag.right", has_text="pixdec-nano, step 1 of 4").wait_for()
    assert page.get_by_role("progressbar", name="Decoding").is_visible()
    page.get_by_role("button", name="Cancel").click()
    say(page, "Canceled.")
    until(page, lambda: stub.canceled == ["job-1"])
    stub.hold_after = 0
    page.get_by_role("button", name="Try again").click()
    settled(page)


def test_a_new_setting_cancels_the_decode_before(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit("steps=4")
    stub.hold_after = 1
    choose(page, photograph())
    say(page, "Step 1 of 4")
    page.get_by_label("Strength").fill("0.3")
    until(page, lambda: stub.canceled == ["job-1"])
    stub.hold_after = 0
    settled(page)
    assert stub.asked[2]["strength"] == "0.3"
    assert "--strength 0.3" in page.locator("#command").text_content()
    assert "strength=0.3, seed=0" in page.locator("#python").text_content()


def test_a_model_that_reads_text_gets_a_prompt_and_says_its_licence(visit: Visit, stub: Stub) -> None:
    page = visit()
    assert not page.get_by_label("Prompt").is_visible()
    page.get_by_label("Latent space").select_option("flux2")
    settled(page)
    assert page.get_by_text("NSCLv1: not for commercial use").is_visible()
    page.get_by_label("Prompt").fill("arches at dusk")
    page.get_by_label("Prompt").press("Enter")
    until(page, lambda: len(stub.asked) == 2)
    settled(page)
    assert [each.get("prompt") for each in stub.asked] == [None, "arches at dusk"]
    assert "--prompt 'arches at dusk'" in page.locator("#command").text_content()
    assert 'prompt="arches at dusk", seed=0, steps=4' in page.locator("#python").text_content()


def test_a_space_and_a_model_in_it_are_chosen(visit: Visit, stub: Stub, tmp_path: Path) -> None:
    model = {**stub.models()["data"][1], "needs_text": False}
    stub.more = [
        {**model, "id": "pid-flux2-4k", "scale": 8},
        {**model, "id": "pid-dinov2", "space": "dinov2", "encodes": False},
        {"id": "flux", "object": "model", "kind": "pipeline"},
    ]
    page = visit()
    options = lambda name: page.locator(f"#{name} option").all_inner_texts()  # noqa: E731
    assert options("space") == ["rgb, any image", "flux2"]  # an image cannot be encoded for dinov2
    assert options("model") == ["pixdec-nano"]
    page.get_by_label("Latent space").select_option("flux2")
    until(page, lambda: stub.asked and stub.asked[-1]["model"] == "pid-flux2-2k")
    settled(page)
    assert options("model") == ["pid-flux2-2k", "pid-flux2-4k"]
    page.reload()
    settled(page)
    assert page.get_by_label("Latent space").input_value() == "flux2"
    latent = Latent(torch.zeros(1, 768, 4, 6), "dinov2", 0.25, statistics=False)
    latent.save(tmp_path / "vision.safetensors")
    page.locator("#file").set_input_files(tmp_path / "vision.safetensors")
    page.locator("#source", has_text="vision.safetensors: a latent of dinov2, 6 × 4, σ 0.25").wait_for()
    assert options("space") == ["rgb, any image", "dinov2"]


def test_another_size_than_the_models_own(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    stub.limits["pixels"] = 300_000
    page = visit(quiet=True)
    choose(page, photograph())
    settled(page)
    sizes = page.locator("#scale option").all_inner_texts()
    assert sizes[0] == "1 ×: 96 × 64"
    assert sizes[-1] == "6 ×: 576 × 384"  # 8 × is more than this server takes
    page.get_by_label("Size", exact=True).select_option("1.5")
    page.locator("#facts", has_text="96 × 64 → 144 × 96").wait_for()
    assert [each.get("scale") for each in stub.asked] == [None, "1.5"]
    assert "--scale 1.5" in page.locator("#command").text_content()
    page.get_by_label("Size", exact=True).select_option("6")
    page.locator("#facts", has_text="576 × 384").wait_for()
    choose(page, photograph("larger.png", (130, 130)))  # 6 × would be too many pixels
    page.locator("#facts", has_text="130 × 130 → 520 × 520").wait_for()


def test_download_in_each_format(visit: Visit, photograph: Callable[..., Path], tmp_path: Path) -> None:
    page = visit()
    choose(page, photograph("holiday.png"))
    settled(page)
    for format, suffix in [("png", "png"), ("jpeg", "jpg")]:
        page.get_by_label("Format of the download").select_option(format)
        with page.expect_download() as download:
            page.locator("#download").click()
        assert download.value.suggested_filename == f"holiday-4x.{suffix}"
        download.value.save_as(tmp_path / "got")
        assert Image.open(tmp_path / "got").format.lower() == format


def test_the_address_reopens_the_same_settings(visit: Visit, stub: Stub) -> None:
    page = visit("example=osprey&steps=2&strength=0.2&seed=7&mode=side&zoom=2x&at=30")
    settled(page)
    assert {name: stub.asked[0][name] for name in ("steps", "strength", "seed")} == {
        "steps": "2",
        "strength": "0.2",
        "seed": "7",
    }
    assert page.get_by_label("Side by side").is_checked()
    page.reload()
    settled(page)
    assert stub.asked[0] == stub.asked[1]
    page.get_by_role("button", name="Copy link").click()
    say(page, "Link copied.")
    assert "strength=0.2" in page.evaluate("navigator.clipboard.readText()")


def test_a_reload_brings_ones_own_image_back(visit: Visit, stub: Stub, photograph: Callable[..., Path]) -> None:
    page = visit()
    choose(page, photograph("holiday.png"))
    settled(page)
    page.reload()
    page.locator("#source", has_text="holiday.png").wait_for()
    settled(page)
    assert len(stub.asked) == 2


def test_a_link_with_someone_elses_image_says_so(visit: Visit) -> None:
    page = visit("file=theirs.png")
    say(page, "theirs.png")


def test_exif_turns_the_picture_and_an_animation_gives_its_first_frame(
    visit: Visit, stub: Stub, photograph: Callable[..., Path], tmp_path: Path
) -> None:
    page = visit("steps=4")
    exif = Image.Exif()
    exif[0x112] = 6
    choose(page, photograph("turned.jpg", exif=exif))
    settled(page)
    assert "64 × 96 → 256 × 384" in page.locator("#facts").inner_text()
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    stub.hold_after = 1
    choose(page, tmp_path / "moving.gif")
    say(page, "first frame")
    stub.hold_after = 0
    page.locator("#facts", has_text="40 × 40 → 160 × 160").wait_for()
    assert stub.jobs["job-2"]["first"].getpixel((5, 5))[0] > 200


def test_dropping_and_pasting(visit: Visit, photograph: Callable[..., Path]) -> None:
    page = visit()
    page.evaluate(
        """data => {
            window.holding = name => {
                const held = new DataTransfer();
                held.items.add(new File([new Uint8Array(data)], name, { type: "image/png" }));
                return held;
            };
        }""",
        list(photograph().read_bytes()),
    )
    page.evaluate("dispatchEvent(new DragEvent('dragenter', { dataTransfer: holding('dropped.png') }))")
    assert page.get_by_text("Drop to decode").is_visible()
    page.evaluate("dispatchEvent(new DragEvent('drop', { dataTransfer: holding('dropped.png') }))")
    page.locator("#source", has_text="dropped.png").wait_for()
    assert not page.get_by_text("Drop to decode").is_visible()
    page.evaluate("dispatchEvent(new ClipboardEvent('paste', { clipboardData: holding('pasted.png') }))")
    page.locator("#source", has_text="pasted.png").wait_for()
    settled(page)
