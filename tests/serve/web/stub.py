"""The service's HTTP contract in little, with Lanczos for a decoder: quick, and it fails as it is told."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
from dataclasses import dataclass, field
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from pixdec.latents import Latent

WEB = Path(__file__).parents[3] / "src/pixdec/serve/web"
TYPES = {
    ".html": "text/html",
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".webp": "image/webp",
}
CSP = "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:"


@dataclass
class Stub:
    """How it behaves; the requests it saw."""

    hold_after: int = 0  # a decode stops after so many steps, until this is 0 again or it is canceled
    limits: dict[str, int] = field(
        default_factory=lambda: {"pixels": 4096 * 4096, "bytes": 32 << 20, "n": 4, "steps": 8}
    )
    refuse: list[tuple[int, str]] = field(default_factory=list)  # the next submissions' answers
    break_streams: int = 0
    fail: str = ""
    loaded: bool = True
    nano: bool = True
    more: list[dict[str, Any]] = field(default_factory=list)  # of its models
    expired: bool = False
    key: str = ""
    held: tuple[str, threading.Event] | None = None  # the end of a path that is answered when the event is set
    address: str = ""
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: list[dict[str, str]] = field(default_factory=list)
    canceled: list[str] = field(default_factory=list)

    def models(self) -> dict[str, Any]:
        model = {
            "object": "model",
            "owned_by": "pixdec",
            "scale": 4,
            "steps": [1, 4],
            "default_steps": 4,
            "loaded": True,
        }
        nano = {
            **model,
            "default_steps": 1,
            "id": "pixdec-nano",
            "space": "rgb",
            "licence": "Apache-2.0",
            "megapixels_per_second": 0.5,
        }
        pid = {
            **model,
            "id": "pid-flux2-2k",
            "space": "flux2",
            "needs_text": True,
            "licence": "NSCLv1",
            "megapixels_per_second": None,
        }
        if not self.loaded:
            nano.update(loaded=False, steps=None, default_steps=None, megapixels_per_second=None)
        return {"object": "list", "data": [*[nano][: self.nano], pid, *self.more], "limits": self.limits}

    def submit(self, kind: str, form: dict[str, bytes]) -> dict[str, Any]:
        fields = {name: value.decode() for name, value in form.items() if name not in ("image", "latent")}
        self.asked.append({"kind": kind, **fields})
        if kind == "upscale":
            first = ImageOps.exif_transpose(Image.open(io.BytesIO(form["image"]))).convert("RGB")
        else:
            path = Path("/tmp") / f"stub-{len(self.jobs)}.safetensors"
            path.write_bytes(form["latent"])
            _, _, h, w = Latent.load(path, statistics=False).tensor.shape
            path.unlink()
            first = Image.linear_gradient("L").resize((16 * w, 16 * h)).convert("RGB")
        identity, steps = f"job-{len(self.jobs)}", int(fields.get("steps", 1))
        size = tuple(round(float(fields.get("scale", 4)) * side) for side in first.size)
        result = ImageOps.posterize(first.resize(size, Image.Resampling.LANCZOS), 9 - steps)
        links = {
            name: f"/v1/jobs/{identity}{end}"
            for name, end in {"self": "", "events": "/events", "result": "/result", "first": "/first"}.items()
        }
        record = {
            "id": identity,
            "kind": kind,
            "state": "queued",
            "position": 1,
            "step": 0,
            "steps": steps,
            "model": fields["model"],
            "seed": int(fields["seed"]),
            "width": size[0],
            "height": size[1],
            "settings": fields,
            "seconds": {},
            "error": None,
            "links": links,
        }
        self.jobs[identity] = {"record": record, "first": first, "result": result}
        return record

    def events(self, identity: str) -> Any:
        job = self.jobs[identity]
        record = job["record"]
        yield "state", record
        for step in range(record["step"] + 1, record["steps"] + 1):
            while self.hold_after and step > self.hold_after and identity not in self.canceled:
                time.sleep(0.02)
            if identity in self.canceled:
                record["state"] = "cancelled"
                yield "cancelled", record
                return
            record.update(state="running", step=step)
            small = job["result"].copy()
            small.thumbnail((256, 256))
            yield (
                "preview",
                {
                    "step": step,
                    "steps": record["steps"],
                    "image": f"data:image/webp;base64,{base64.b64encode(encoded(small, 'webp')).decode()}",
                },
            )
            if self.break_streams:
                self.break_streams -= 1
                return
        if self.fail:
            record.update(state="failed", error={"code": "out_of_memory", "message": self.fail})
        else:
            record.update(
                state="done",
                seconds={"queue": 0.0, "prepare": 0.1, "decode": 1.2, "write": 0.06},
                peak_bytes=312_000_000,
            )
        yield record["state"], record


def encoded(image: Image.Image, kind: str) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **({"lossless": True, "method": 0} if kind == "webp" else {}))
    return data.getvalue()


def serve(stub: Stub) -> ThreadingHTTPServer:
    """Start it on a free port of this machine; `shutdown()` ends it."""

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # the page went away
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

        def answer(self, status: int, data: bytes, kind: str = "application/json", **more: str) -> None:
            self.send_response(status)
            for name, value in {
                "Content-Type": kind,
                "Content-Length": str(len(data)),
                "X-Content-Type-Options": "nosniff",
                **more,
            }.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)

        def refuse(self, status: int, message: str) -> None:
            more = {"Retry_After": "1"} if status in (429, 503) else {}
            self.answer(
                status,
                json.dumps({"error": {"message": message, "type": "error", "param": None, "code": None}}).encode(),
                **more,
            )

        def allowed(self) -> bool:
            if stub.key and self.headers.get("Authorization") != f"Bearer {stub.key}":
                self.refuse(401, "a key is needed")
                return False
            return True

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            if stub.held and path.endswith(stub.held[0]):
                stub.held[1].wait(30)
            if path == "/" or path.startswith("/page/"):
                file = WEB / ("index.html" if path == "/" else path.removeprefix("/page/"))
                if not file.is_file():
                    return self.refuse(404, path)
                return self.answer(
                    200,
                    file.read_bytes(),
                    TYPES.get(file.suffix, "application/octet-stream"),
                    Content_Security_Policy=CSP,
                )
            if not self.allowed():
                return None
            if path == "/v1/models":
                return self.answer(200, json.dumps(stub.models()).encode())
            _, _, _, identity, *what = path.split("/")
            if identity not in stub.jobs:
                return self.refuse(404, f"{identity}: no such job")
            job = stub.jobs[identity]
            if not what:
                return self.answer(200, json.dumps(job["record"]).encode())
            if what == ["events"]:
                return self.stream(identity)
            if stub.expired:
                return self.refuse(410, "the result is gone")
            kind = query.removeprefix("format=") or "png"
            return self.answer(200, encoded(job[what[0]], kind), f"image/{kind}")

        def stream(self, identity: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for event, data in stub.events(identity):
                self.wfile.write(f"event: {event}\ndata: {json.dumps(data)}\n\n".encode())
                self.wfile.flush()

        def do_POST(self) -> None:
            data = self.rfile.read(int(self.headers["Content-Length"]))
            if not self.allowed():
                return None
            if stub.refuse:
                return self.refuse(*stub.refuse.pop(0))
            message = BytesParser().parsebytes(
                b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n" + data
            )
            form = {
                str(part.get_param("name", header="content-disposition")): part.get_payload(decode=True)
                for part in message.get_payload()
            }
            record = stub.submit(self.path.removeprefix("/v1/"), form)
            return self.answer(202, json.dumps(record).encode())

        def do_DELETE(self) -> None:
            stub.canceled.append(self.path.rpartition("/")[2])
            self.answer(200, b"{}")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
