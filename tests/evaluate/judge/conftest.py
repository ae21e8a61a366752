"""A stub of an OpenAI-compatible endpoint on this machine, and folders of small images to judge."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import ImageFilter

sys.path.insert(0, str(Path(__file__).parent))
from judge_stub import Stub, picture


@pytest.fixture
def stub() -> Iterator[Stub]:
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
    yield stub
    stub.release.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four noisy pictures, and a softer copy of each."""
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    for folder in (ours, theirs):
        folder.mkdir()
    for seed in range(4):
        picture(seed).save(ours / f"{seed}.png")
        picture(seed).filter(ImageFilter.GaussianBlur(1)).save(theirs / f"{seed}.png")
    return ours, theirs
