"""`pixdec serve`: decoders as a service over HTTP."""

from __future__ import annotations

from dataclasses import dataclass

from pixdec.io.quiet import library


@dataclass(frozen=True)
class Serve:
    """Serve decoders over HTTP, and a page to try them at /. See docs/serving.md."""

    config: str | None = None
    """A TOML file of settings: models, limits, keys, ..."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is all of this machine's."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    model: tuple[str, ...] = ()
    """Decoders to serve, names of `pixdec models` or files, in place of the file's."""
    device: str | None = None
    """Of the models and pipelines that name none, such as cuda:1; without it the fastest there is."""

    def run(self) -> int:
        library("pixdec.serve.server", "pixdec serve", "serve")
        from pixdec.serve.server import serve
        from pixdec.serve.settings import models_named, read_settings

        if not 0 <= self.port <= 65535:
            raise ValueError(f"port={self.port}: expected 0 to 65535")
        settings = read_settings(self.config)
        if self.model:
            settings = settings.model_copy(update={"models": models_named(self.model)})
        return serve(settings if self.device is None else settings.on(self.device), self.host, self.port)
