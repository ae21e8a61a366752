"""What tests of the service share."""

import contextlib
import io
import socket
import threading
import time

import numpy as np
import uvicorn
from PIL import Image

from pixdec.serve.http import app_for
from pixdec.serve.jobs import Work
from pixdec.serve.settings import ServeSettings

QUICK = ServeSettings(silence=2, delay=0.02)


def picture(width=12, height=12, seed=0, kind="PNG", **options):
    """The file of an image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **options)
    return file.getvalue()


def work(seed=0, size=12, **more):
    return Work("upscale", "pixdec-nano", picture(size, size, seed), (size, size), (4 * size) ** 2, seed=seed, **more)


@contextlib.contextmanager
def served(engine):
    """The engine behind HTTP, on a port of its own."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app_for(engine), log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
