"""A client of the service, of the standard library alone.

client = Client("http://localhost:8000")
larger = client.upscale("photo.jpg", seed=1)  # the bytes of a PNG
for event, data in client.events(client.upscale("photo.jpg", respond="job")["id"]):
    print(event, data)
"""

from __future__ import annotations

import json
import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from pathlib import Path
from typing import Any


class ServiceFailed(Exception):  # noqa: N818
    """What the service said in place of an answer: `status`, `code`, and `param`, the field that is wrong."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param


class Client:
    """Speaks to a service.

    Args:
        url: of the service.
        key: if it asks for one.
        timeout: seconds to wait for an answer.
        retries: how often to ask again when the service is busy or not ready, after as long as it says.
    """

    def __init__(
        self, url: str = "http://127.0.0.1:8000", key: str | None = None, timeout: float = 300, retries: int = 5
    ):
        self.url, self.timeout, self.retries = url.rstrip("/"), timeout, retries
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    def upscale(self, image: bytes | str | Path, **fields: object) -> Any:
        """The larger image as bytes, or the record of the job with respond="job"; fields as of /v1/upscale.

        Raises:
            ServiceFailed: it refused.
            OSError: it cannot be reached.
        """
        return self._sent("/v1/upscale", fields, image=image)

    def decode(self, latent: bytes | str | Path, **fields: object) -> Any:
        """The image of a latent, a file that `Latent.save` wrote; as `upscale`."""
        return self._sent("/v1/decode", fields, latent=latent)

    def generate(self, prompt: str, **fields: object) -> Any:
        """The image of a prompt; as `upscale`."""
        return self._sent("/v1/generate", {"prompt": prompt, **fields})

    def models(self) -> list[dict[str, Any]]:
        """What decodes there."""
        return self.get("/v1/models")["data"]

    def job(self, id: str) -> dict[str, Any]:
        """The record of a job."""
        return self.get(f"/v1/jobs/{id}")

    def result(self, id: str, format: str = "png") -> bytes:
        """The image of a job that is done."""
        return self.get(f"/v1/jobs/{id}/result?format={format}")

    def cancel(self, id: str) -> dict[str, Any]:
        """Stop a job."""
        return self._asked(urllib.request.Request(f"{self.url}/v1/jobs/{id}", headers=self._headers, method="DELETE"))

    def events(self, id: str) -> Generator[tuple[str, dict[str, Any]]]:
        """What happens to a job, until it ends."""
        request = urllib.request.Request(f"{self.url}/v1/jobs/{id}/events", headers=self._headers)
        event = ""
        with urllib.request.urlopen(request, timeout=self.timeout) as lines:
            for line in lines:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "event":
                    event = value
                elif name == "data":
                    yield event, json.loads(value)

    def get(self, path: str) -> Any:
        """JSON, or bytes."""
        return self._asked(urllib.request.Request(self.url + path, headers=self._headers))

    def _sent(self, path: str, fields: dict[str, Any], **files: bytes | str | Path) -> Any:
        mark = secrets.token_hex(16)
        body = bytearray()
        for name, value in {**fields, **files}.items():
            head = f'--{mark}\r\nContent-Disposition: form-data; name="{name}"'
            data = Path(value).read_bytes() if name in files and isinstance(value, str | Path) else value
            text = f'{head}; filename="{name}"\r\n\r\n' if name in files else f"{head}\r\n\r\n"
            body += text.encode() + (data if isinstance(data, bytes) else str(data).encode()) + b"\r\n"
        body += f"--{mark}--\r\n".encode()
        headers = {**self._headers, "Content-Type": f"multipart/form-data; boundary={mark}"}
        return self._asked(urllib.request.Request(self.url + path, bytes(body), headers))

    def _asked(self, request: urllib.request.Request) -> Any:
        for left in reversed(range(self.retries + 1)):
            try:
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    data: bytes = answer.read()
                    return json.loads(data) if "json" in answer.headers["content-type"] else data
            except urllib.error.HTTPError as refused:
                after = refused.headers.get("retry-after")
                if left and refused.code in (429, 503) and after is not None:
                    time.sleep(float(after))
                    continue
                text = refused.read().decode(errors="replace")
                error: dict[str, Any] = json.loads(text).get("error", {}) if text.startswith("{") else {}
                message, code = error.get("message", text[:200]), error.get("code")
                raise ServiceFailed(refused.code, message, code, error.get("param")) from None
        raise AssertionError
