"""`pixdec page`: the service on the bundled model, and the browser on some images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pixdec.cli.options import Flag
from pixdec.cli.report import explained, tell

if TYPE_CHECKING:
    from pathlib import Path

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
        try:
            from pixdec.serve.server import serve
            from pixdec.serve.settings import ModelSettings, ServeSettings
        except ImportError as error:
            raise ValueError(f"pixdec page needs {error.name}: pip install 'pixdec[serve]'") from error
        import webbrowser
        from pathlib import Path
        from urllib.parse import urlencode

        given = self._given()
        if self.images and not given:
            return 2
        name = Path(self.model).stem if Path(self.model).exists() else self.model
        settings = ServeSettings(models={name: ModelSettings(source=self.model)})
        asked = f"#{urlencode({'given': '/'.join(path.name for path in given)})}" if given else ""

        def opened(url: str) -> None:
            print(f"the page: {url}/{asked} (Ctrl-C ends it)", flush=True)
            if not self.no_browser:
                webbrowser.open(f"{url}/{asked}")

        return serve(settings, port=self.port, given=given, listening_at=opened)

    def _given(self) -> list[Path]:
        """The files that can be shown; what is wrong with the others is told."""
        from pathlib import Path

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
