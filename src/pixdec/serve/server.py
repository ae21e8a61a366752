"""The service as a process: a port, an engine, and an end that leaves no request without an answer."""

from __future__ import annotations

import logging
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi.responses import FileResponse, Response

from pixdec.devices import device_named
from pixdec.serve.engine import Engine
from pixdec.serve.http import app_for
from pixdec.serve.settings import ServeSettings
from pixdec.weights.load import find_weights


class Server(uvicorn.Server):
    """On a signal the engine takes nothing new, and the server waits for what runs; on a second one it does not."""

    engine: Engine
    unusable: str | None = None

    def give_up(self, reason: str) -> None:
        """End, since a model cannot be loaded."""
        self.unusable, self.should_exit = reason, True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.engine.draining:
            self.force_exit = True
            return
        self.engine.draining = True

        def drain() -> None:
            self.engine.drain()
            self.should_exit = True

        threading.Thread(target=drain, daemon=True).start()


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = str(error.strerror or error).partition(" (")[0]
        raise OSError(f"port {port} of {host} cannot be had ({reason}); take another with --port") from None


def serve(
    settings: ServeSettings,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    given: Sequence[Path] = (),
    listening_at: Callable[[str], object] | None = None,
) -> int:
    """Run the service until a signal ends it.

    Args:
        settings: what is served, and how.
        host: the address to listen on.
        port: 0 takes a free one.
        given: files that the page shows beside its examples, at /given/0 and so on.
        listening_at: called with the address once it listens.

    Returns:
        0 if every request that it took was done, 1 if some were failed by the end.

    Raises:
        OSError: as `listen`.
        ValueError: a model or a device that is not there, or a model that cannot be loaded.
    """
    listening = listen(host, port)
    check(settings)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    engine = Engine(settings)
    app = app_for(engine)

    @app.get("/given/{place}", include_in_schema=False)
    async def file(place: int) -> Response:  # pyright: ignore[reportUnusedFunction]
        return FileResponse(given[place]) if place < len(given) else Response(status_code=404)

    config = uvicorn.Config(
        app,
        http="h11",  # whatever else is installed: the limit below is h11's
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=32 << 10,
        lifespan="off",
        log_level="warning",
    )
    config.load()
    server = Server(config)
    server.engine, engine.on_unusable = engine, server.give_up
    with engine:
        url = f"http://{host}:{listening.getsockname()[1]}"
        print(f"pixdec listens on {url}", flush=True)
        if listening_at is not None:
            listening_at(url)
        server.run([listening])
    if server.unusable is not None:
        raise ValueError(server.unusable)
    return int(engine.failed_at_close)


def check(settings: ServeSettings) -> None:
    """See that what a service needs is there, before it starts.

    Raises:
        ValueError, OSError: one line.
    """
    for model in settings.models.values():
        if not find_weights(model.source).exists():
            raise ValueError(f"{model.source}: there is no such file; see `pixdec models`")
    for each in (*settings.models.values(), *settings.pipelines.values()):
        if each.device is not None:
            device_named(each.device)
