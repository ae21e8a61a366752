"""`pixdec page`: the service on the bundled model, and the browser on some images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from pixdec.cli.options import Flag
from pixdec.cli.report import explained, tell
from pixdec.io.quiet import library

Images = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]", help_behavior_hint="")]


@dataclass(frozen=True)
class Page:
    """See what a decoder does to these images: before and after, each step, through a lens, in the browser.

    It starts `pixdec serve` on this machine alone, until Ctrl-C. Nothing is written. See docs/page.md.
    """

    images: Images = ()
    """Images or latents; without any, the page shows its examples."""
    model: str = "pixdec-nano"
    """The decoder: a name that `pixdec models` lists, or a file of weights."""
    port: int = 0
    """Port to listen on; 0 takes a free one."""
    no_browser: Flag = False
    """Print the address, and open no browser."""

    def run(self) -> int:
        library("pixdec.serve.server", "pixdec page", "serve")
        import webbrowser
        from urllib.parse import urlencode

        from pixdec.serve.server import serve
        from pixdec.serve.settings import ServeSettings, models_named

        given = self._given()
        if self.images and not given:
            return 2
        asked = f"#{urlencode({'given': '/'.join(path.name for path in given)})}" if given else ""

        def opened(url: str) -> None:
            print(f"the page: {url}/{asked} (Ctrl-C ends it)", flush=True)
            if not self.no_browser:
                webbrowser.open(f"{url}/{asked}")

        return serve(ServeSettings(models=models_named([self.model])), port=self.port, given=given, listening_at=opened)

    def _given(self) -> list[Path]:
        """The files that can be shown; what is wrong with the others is told."""
        from pixdec.io.images import image_size
        from pixdec.latents.latent import SUFFIXES

        found = list[Path]()
        for path in map(Path, self.images):
            try:
                if path.suffix not in SUFFIXES or not path.is_file():
                    image_size(path)
                found.append(path)
            except (ValueError, OSError) as error:
                tell(explained(error))
        return found
