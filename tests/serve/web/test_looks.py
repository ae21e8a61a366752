"""How the page looks and what it weighs: widths, themes, keyboard alone, accessibility, bytes; the docs' pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.serve.web.stub import Stub
from tests.serve.web.test_page import Visit, choose, say, settled, until

if TYPE_CHECKING:
    from playwright.sync_api import Page

PICTURES = Path(__file__).parents[3] / "docs/pictures"
LOOKS = {
    "page": ("", 1440, 900, "light"),
    "page-lens": ("mode=lens&zoom=2x&lens=44,62", 1440, 900, "dark"),
    "page-narrow": ("at=40", 390, 844, "dark"),
}


@pytest.mark.parametrize("width", [360, 768, 1440, 2560])
def test_nothing_is_wider_than_the_window(visit: Visit, width: int) -> None:
    page = visit(width=width, height=800 if width < 2000 else 1440)
    for mode in ("Divider", "Side by side", "Lens"):
        page.get_by_label(mode, exact=True).check()
        fits(page, width)


def fits(page: Page, width: int) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") == width
    stage = page.locator("pix-compare").bounding_box()
    assert stage["width"] > 0.6 * width
    assert stage["height"] > 200
    cut = page.evaluate("""() => [...document.querySelectorAll("button, select, .choice label, output, .tag")]
        .filter(each => each.offsetParent && each.scrollWidth > each.clientWidth + 1).map(each => each.textContent)""")
    assert cut == []


@pytest.mark.parametrize("name", LOOKS)
def test_looks_as_in_the_docs(visit: Visit, name: str, tmp_path: Path) -> None:
    """UPDATE_PICTURES=1 takes the pictures anew."""
    address, width, height, scheme = LOOKS[name]
    page = visit(address, width=width, height=height, color_scheme=scheme)
    page.wait_for_timeout(300)
    page.screenshot(path=tmp_path / "now.png")
    now, kept = Image.open(tmp_path / "now.png").convert("RGB"), PICTURES / f"{name}.webp"
    if os.environ.get("UPDATE_PICTURES"):
        now.save(kept, quality=82, method=6)
    before = Image.open(kept).convert("RGB")
    assert before.size == now.size
    small = [each.resize((width // 8, height // 8), Image.Resampling.BOX) for each in (before, now)]  # fonts differ
    assert max(ImageStat.Stat(ImageChops.difference(*small)).mean) < 6


def test_bytes_of_the_first_load(visit: Visit, stub: Stub) -> None:
    page = visit(ready=False)
    page.wait_for_load_state("networkidle")
    sizes = page.evaluate(
        "performance.getEntriesByType('resource').map(each => [each.name.split('/').at(-1), each.encodedBodySize])"
    )
    code = sum(size for name, size in sizes if not name.endswith(".webp"))
    pictures = sum(size for name, size in sizes if name.endswith(".webp"))
    assert 20_000 < code < 80_000
    assert 40_000 < pictures < 150_000


def test_everything_by_keyboard(visit: Visit, stub: Stub) -> None:
    page = visit()
    reached = list[str]()
    for _ in range(40):
        page.keyboard.press("Tab")
        here = page.evaluate_handle("document.activeElement")
        reached.append(here.evaluate("e => e === document.body ? '' : e.id || e.name || e.dataset.id || e.ariaLabel"))
        if "copy" in reached or reached[-1] == "":
            break
    wanted = ["Divider between the two pictures", "modes", "zooms", "file", "colosseum", "lighthouse", "model", "steps"]
    assert [each for each in reached if each in wanted] == wanted
    assert {"strength", "seed", "download", "format", "link"} <= set(reached)
    page.locator("#modes input").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("pix-compare").get_attribute("mode") == "side"
    assert page.evaluate("document.activeElement.value") == "side"
    to(page, "#gallery [data-id=osprey]", "Enter")
    settled(page)
    to(page, "#steps", "ArrowRight", "ArrowRight")
    until(page, lambda: [each["steps"] for each in stub.asked][-1:] == ["3"])
    settled(page)
    stub.hold_after = 1
    to(page, "#seed", "ArrowUp", "Enter")
    say(page, "Step 1 of 3")
    to(page, "#cancel", "Enter", back=True)
    say(page, "Canceled")
    stub.hold_after = 0
    page.keyboard.press("Enter")  # on the button to try again
    settled(page)
    page.locator("#modes input:checked").focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert page.locator("pix-compare").get_attribute("mode") == "lens"
    to(page, ".lens", "Shift+ArrowRight", back=True)
    assert "60 % across" in page.locator(".lens").get_attribute("aria-label")
    with page.expect_download():
        to(page, "#download", "Enter")
    to(page, "summary", "Enter")
    assert page.locator("#command").is_visible()


def to(page: Page, selector: str, *keys: str, back: bool = False) -> None:
    """Go there by Tab, and press the keys."""
    for _ in range(60):
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            break
        page.keyboard.press("Shift+Tab" if back else "Tab")
    else:
        raise AssertionError(f"{selector} is not reached")
    for key in keys:
        page.keyboard.press(key)


def test_motion_is_reduced_where_it_is_asked(visit: Visit) -> None:
    page = visit(reduced_motion="reduce")
    moving = page.evaluate("""() => [...document.querySelectorAll("*")]
        .filter(each => parseFloat(getComputedStyle(each).transitionDuration) > 0).length""")
    assert moving == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_in_any_state(
    visit: Visit, stub: Stub, photograph: Callable[..., Path], tmp_path: Path, scheme: str
) -> None:
    axe = Path(os.environ.get("AXE_CORE", "node_modules/axe-core/axe.min.js"))
    if not axe.is_file():
        pytest.skip("AXE_CORE names no axe.min.js of npm's axe-core")
    page = visit(color_scheme=scheme, quiet=True)

    def clean(state: str) -> None:
        assert found(page, axe) == [], state

    clean("an example")
    choose(page, photograph())
    settled(page)
    page.locator("summary").click()
    for mode in ("Side by side", "Flicker", "Difference", "Lens", "Divider"):
        page.get_by_label(mode, exact=True).check()
        clean(mode)
    page.locator("#zooms").get_by_text("400 %").click()
    clean("a picture that scrolls")
    page.get_by_label("Latent space").select_option("flux2")
    settled(page)
    clean("a model that reads text")
    stub.hold_after = 1
    page.get_by_label("Seed").fill("3")
    page.get_by_label("Seed").press("Enter")
    say(page, "Step 1 of 4")
    clean("decoding")
    page.get_by_role("button", name="Cancel").click()
    say(page, "Canceled")
    clean("canceled")
    (tmp_path / "notes.txt").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    say(page, "not an image")
    clean("an error")
    stub.hold_after = 0
    page.get_by_role("button", name="Latent").click()
    settled(page)
    clean("a latent")
    page.evaluate("document.getElementById('dropping').hidden = false")
    clean("a file above the page")
    page.evaluate("document.getElementById('dropping').hidden = true")
    page.set_viewport_size({"width": 360, "height": 740})
    clean("a narrow screen")
    stub.key = "secret"
    page.get_by_label("Seed").fill("4")
    page.get_by_label("Seed").press("Enter")
    page.get_by_label("Key", exact=True).wait_for()
    clean("a key is asked for")


def found(page: Page, axe: Path) -> list[str]:
    page.evaluate(axe.read_text())
    results = page.evaluate("axe.run()")
    return [f"{each['impact']} {each['id']}: {each['nodes'][0]['html'][:120]}" for each in results["violations"]]
