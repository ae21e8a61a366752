"""The bodies of requests, within the limits of bytes and time: forms and JSON."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pixdec.serve import schema
from pixdec.serve.engine import Engine
from pixdec.serve.jobs import ServiceError

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # the answer says what is wrong with a form


async def body_of(request: Request, engine: Engine) -> bytes:
    """The body, within the limits of bytes and time.

    Raises:
        ServiceError: too large, or too slow.
    """
    most = engine.settings.limits.bytes
    too_large = ServiceError("body_too_large", f"the body has more than {most} bytes")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most:
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(engine.settings.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise ServiceError("body_too_slow", f"no whole body in {engine.settings.body_seconds:g} s") from None
    return bytes(body)


async def fields_of(request: Request, kind: type[schema.Strict], engine: Engine) -> dict[str, Any]:
    """The fields of a request, of a form or of JSON; files as bytes.

    Raises:
        ServiceError: neither, or damaged.
    """
    media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media not in ("application/json", "multipart/form-data"):
        raise ServiceError("unsupported_media_type", "expected multipart/form-data or application/json")
    body = await body_of(request, engine)
    if media == "application/json":
        return schema.from_json(kind, body)

    async def whole() -> AsyncGenerator[bytes]:
        yield body

    parser = MultiPartParser(request.headers, whole(), max_files=8, max_fields=64, max_part_size=1 << 20)
    parser.spool_max_size = engine.settings.limits.bytes + 1  # in memory: nothing of a client's goes to the disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise ServiceError("invalid_form", f"a damaged form ({getattr(error, 'message', 'cannot be read')})") from None
    files, texts = dict[str, bytes](), dict[str, str]()
    wanted = schema.files_of(kind)
    for name, value in form.multi_items():
        name = name.removesuffix("[]")
        if name in files or name in texts:
            raise ServiceError("invalid_field", f"{name}: given twice; expected one", name)
        if isinstance(value, UploadFile):
            if name not in wanted:
                raise ServiceError("invalid_field", f"{name}: a file where none is expected", name)
            files[name] = await value.read()
        elif name in wanted:
            raise ServiceError("invalid_field", f"{name}: expected a file", name)
        else:
            texts[name] = value
    return {**schema.from_form(kind, texts), **files}
