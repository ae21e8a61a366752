"""A browser, the stub of the service, and a page that fails a test by any error in its console."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.serve.web.stub import Stub, serve

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(
    (path for name in ("chromium", "chromium-headless-shell", "google-chrome") if (path := shutil.which(name))), None
)


@pytest.fixture(scope="module")  # it keeps an event loop, which other tests with a browser do not stand
def browser() -> Generator[Browser]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[dev]'")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def stub() -> Generator[Stub]:
    stub = Stub()
    server = serve(stub)
    stub.address = f"http://127.0.0.1:{server.server_port}/"
    yield stub
    server.shutdown()


@pytest.fixture
def visit(browser: Browser, stub: Stub) -> Generator[Callable[..., Page]]:
    """`visit(settings of the address, width=…, height=…, …)`: the page when its first picture stands."""
    contexts, errors = [], list[str]()

    def visit(
        address: str = "",
        width: int = 1280,
        height: int = 800,
        ready: bool = True,
        quiet: bool = False,
        **options: object,
    ) -> Page:
        context = browser.new_context(
            viewport={"width": width, "height": height}, permissions=["clipboard-read", "clipboard-write"], **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if not quiet:
            page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(stub.address + (f"#{address}" if address else ""))
        if ready:
            page.locator("#download").wait_for()
        return page

    yield visit
    for context in contexts:
        context.close()
    assert errors == []


@pytest.fixture
def photograph(tmp_path: Path) -> Callable[..., Path]:
    """A small image that is no example's, in any format, with an orientation if asked."""
    from PIL import Image

    def photograph(name: str = "photo.png", size: tuple[int, int] = (96, 64), **options: object) -> Path:
        image = Image.radial_gradient("L").resize(size).convert("RGB")
        image.paste((200, 40, 20), (0, 0, size[0] // 3, size[1] // 3))
        image.save(tmp_path / name, **options)
        return tmp_path / name

    return photograph
