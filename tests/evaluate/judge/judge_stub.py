"""What the stub of an endpoint answers, and pictures to judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

Reply = tuple[int, dict[str, str], bytes] | None


def said(text: str | None, **more: Any) -> Reply:
    """A completion with this text."""
    choice = {"message": {"role": "assistant", "content": text, **more.pop("message", {})}, "finish_reason": "stop"}
    body = {"model": "stub-1", "choices": [choice], "usage": {"prompt_tokens": 1000, "completion_tokens": 20}, **more}
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


@dataclass
class Stub:
    """What to answer to the n-th call (None: hang), and the calls that came: headers and bodies."""

    reply: Callable[[int], Reply] = lambda count: said("VERDICT: A\nIt is sharper.")
    calls: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    url: str = ""
    release: threading.Event = field(default_factory=threading.Event)


def picture(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).filter(ImageFilter.GaussianBlur(0.7))


@contextmanager
def serving() -> Iterator[Stub]:
    """A stub on a port of this machine."""
    stub, lock = Stub(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                stub.calls.append(body)
                stub.headers.append(dict(self.headers))
                count = len(stub.calls)
            reply = stub.reply(count)
            if reply is None:
                stub.release.wait(20)
                return
            status, headers, data = reply
            self.send_response(status)
            for name, value in {"Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(data) or 1, step := 10 if "X-Slow" in headers else len(data) or 1):
                self.wfile.write(data[start : start + step])
                stub.release.wait(0.05 if "X-Slow" in headers else 0)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield stub
    finally:
        stub.release.set()
        server.shutdown()
        thread.join()
        server.server_close()
