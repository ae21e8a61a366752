"""The page in Chromium: `python -m benchmarks.page -o page.json`. Bytes of the first load, seconds from a drop to the
first preview and to the picture, and frames that are dropped while the divider
is dragged over large pictures.

It needs Debian's chromium, and the machine to itself.
"""

from __future__ import annotations

import io
import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from PIL import Image, ImageFilter

from benchmarks.serve import served
from pixdec.serve.engine import Engine
from pixdec.serve.settings import ServeSettings

if TYPE_CHECKING:
    from playwright.sync_api import Page

# Drops a file on the page, and tells the seconds until a preview, or the picture itself, and until the picture is seen.
DROP = """async ([data, name]) => {
    const bytes = Uint8Array.from(atob(data), letter => letter.charCodeAt(0)), held = new DataTransfer();
    held.items.add(new File([bytes], name, { type: "image/png" }));
    const label = () => document.querySelector(".tag.right").textContent;
    const painted = () => new Promise(requestAnimationFrame);
    const start = performance.now(), since = () => (performance.now() - start) / 1000;
    dispatchEvent(new DragEvent("drop", { dataTransfer: held }));
    while (label()) await painted(); // the picture before
    while (!label()) await painted();
    const preview = since();
    while (label().includes(" of ")) await painted();
    return [preview, since()];
}"""
SIZES = """() => ["navigation", "resource"].flatMap(kind => performance.getEntriesByType(kind))
    .map(each => [each.name, each.transferSize])"""
SHOW = "([which, side]) => document.querySelector('pix-compare').show(which, `of/${which}`, which, [side, side])"
FRAME = 1000 / 60
# Drags the divider to and fro for so many frames, and tells the milliseconds of each.
DRAG = """async count => {
    const range = document.querySelector("pix-compare input"), times = [];
    for (let i = 0; i <= count; i++) {
        times.push(await new Promise(requestAnimationFrame));
        range.value = 20 + Math.abs((i % 120) - 60);
        range.dispatchEvent(new Event("input"));
    }
    return times.slice(1).map((time, i) => time - times[i]);
}"""


def visit(page: Page, address: str) -> None:
    """Open the page anew, until its first picture stands."""
    page.goto("about:blank")
    page.goto(address)
    page.locator("#download").wait_for()


def first_load(page: Page, url: str) -> dict[str, int]:
    """Bytes over the wire until nothing more is asked for: code, and pictures."""
    visit(page, url)
    page.wait_for_load_state("networkidle")
    sizes: dict[str, int] = {"code": 0, "pictures": 0}
    for name, size in page.evaluate(SIZES):
        sizes["pictures" if name.endswith(".webp") else "code"] += size
    return sizes


def drops(page: Page, url: str, side: int, steps: int, repeats: int) -> dict[str, float]:
    """Seconds from the drop of a square image to the first preview and to the picture, medians."""
    import base64

    visit(page, f"{url}/#steps={steps}")
    found = list[list[float]]()
    for i in range(repeats + 1):
        file = io.BytesIO()
        photograph(side, i).save(file, "PNG")
        found.append(page.evaluate(DROP, [base64.b64encode(file.getvalue()).decode(), f"{i}.png"]))
    preview, picture = (round(statistics.median(each), 3) for each in zip(*found[1:], strict=True))
    return {"side": side, "steps": steps, "preview": preview, "picture": picture}


def drags(page: Page, url: str, side: int, zoom: str) -> dict[str, Any]:
    """Frames while the divider goes to and fro over two pictures of this side: how many, and how many the screen had to
    wait for."""
    visit(page, f"{url}/#zoom={zoom}")
    page.route("**/of/*", lambda route: route.fulfill(body=jpeg(side, len(route.request.url))))
    for which in ("before", "after"):
        page.evaluate(SHOW, [which, side])
    page.evaluate(DRAG, 30)
    gaps = page.evaluate(DRAG, 300)
    missed = sum(round(gap / FRAME) - 1 for gap in gaps)
    return {"side": side, "zoom": zoom, "frames": len(gaps) + missed, "dropped": missed, "longest_ms": round(max(gaps))}


def jpeg(side: int, seed: int) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    photograph(side, seed).save(file, "JPEG", quality=90)
    return file.getvalue()


def photograph(side: int, seed: int) -> Image.Image:
    """Clouds, with as much detail as a photograph has."""
    tile = min(side, 1024)
    large = Image.effect_noise((tile // 8, tile // 8), 90 + seed).resize((tile, tile), Image.Resampling.BICUBIC)
    fine = Image.effect_noise((tile, tile), 20).filter(ImageFilter.GaussianBlur(0.7))
    part = Image.merge("RGB", (large, Image.blend(large, fine, 0.4), fine))
    whole = Image.new("RGB", (side, side))
    for left in range(0, side, tile):
        for top in range(0, side, tile):
            whole.paste(part, (left, top))
    return whole


@dataclass(frozen=True)
class Settings:
    """The page in a browser."""

    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """A JSON file."""
    side: int = 256
    """Pixels of the image that is dropped."""
    repeats: int = 5
    """Drops."""
    pictures: tuple[int, ...] = (4096, 8192)
    """Sides of the pictures under the divider."""


def main(settings: Settings) -> None:
    """All of it, one after the other."""
    import torch
    from playwright.sync_api import sync_playwright

    from benchmarks.facts import machine_facts

    found: dict[str, Any] = {"machine": machine_facts(torch.device("cpu")), "command": sys.argv[1:]}

    def keep(name: str, value: Any) -> None:
        found[name] = value
        print(name, json.dumps(value), flush=True)
        settings.output.write_text(json.dumps(found, indent=1) + "\n")

    with Engine(ServeSettings()) as engine, served(engine) as url, sync_playwright() as playwright:
        engine.wait_ready(600)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(120_000)
        keep("bytes", first_load(page, url))
        keep("drops", [drops(page, url, settings.side, steps, settings.repeats) for steps in (1, 4)])
        keep("drags", [drags(page, url, side, zoom) for side in settings.pictures for zoom in ("fit", "1x")])
        browser.close()


if __name__ == "__main__":
    main(tyro.cli(Settings))
