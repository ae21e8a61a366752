"""The images API of OpenAI, for clients that speak it already: a prompt through a pipeline, and an edit without a mask,
which is an upscale. A field that cannot be honoured is refused by its name."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import time
from collections.abc import AsyncGenerator
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import Field

from pixdec.serve import http, schema
from pixdec.serve.bodies import fields_of
from pixdec.serve.engine import Engine
from pixdec.serve.jobs import FORMATS, Job, ServiceError
from pixdec.serve.openapi import OF_OPENAI, add_post
from pixdec.serve.settings import Strict


class Images(Strict):
    """Prompts to images, as OpenAI's clients ask for them."""

    prompt: str = ""
    model: str | None = None
    n: schema.Count = 1
    size: str | None = Field(default=None, pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    output_format: Literal["png", "webp", "jpeg"] = "png"
    output_compression: int | None = Field(default=None, ge=0, le=100)
    response_format: Literal["b64_json"] = "b64_json"
    background: Literal["auto", "opaque"] = "auto"
    quality: Literal["auto"] = "auto"
    stream: bool = False
    partial_images: int = Field(default=0, ge=0, le=3)
    user: str = Field(default="", max_length=256)
    seed: schema.Seed = 0
    steps: schema.Count | None = None


class Edit(Images):
    """An image, larger, as OpenAI's clients ask for it."""

    image: schema.File
    strength: float | None = Field(default=None, ge=0, le=0.8)


def add_openai(app: FastAPI, engine: Engine) -> None:
    """The two routes."""

    async def answer(request: Request, kind: type[Images]) -> Response:
        asked = schema.read(kind, await fields_of(request, kind, engine))
        if asked.n > engine.settings.limits.n or (asked.stream and asked.n > 1):
            most = 1 if asked.stream else engine.settings.limits.n
            raise ServiceError("invalid_field", f"n={asked.n}: at most {most} here", "n")
        if asked.partial_images and not asked.stream:
            raise ServiceError("invalid_field", "partial_images: goes with stream only", "partial_images")
        jobs = list[Job]()
        try:
            for i in range(asked.n):
                each = _request(asked, i, engine)
                jobs.append(await asyncio.to_thread(http.submit, each, engine, previews=asked.stream))
            if asked.stream:
                return StreamingResponse(_streamed(jobs[0], asked, engine), media_type="text/event-stream")
            data = [{"b64_json": await _encoded(job, await http.ended(job, request, engine), asked)} for job in jobs]
        except ServiceError:
            for job in jobs:
                engine.cancel(job)
            raise
        http.note(request, jobs[0])
        return JSONResponse({"created": int(time.time()), "data": data, **_facts(jobs[0], asked)})

    generation: dict[str, object] = {"prompt": "a red fox", "n": 1}
    add_post(app, "/v1/images/generations", Images, answer, (OF_OPENAI, generation))
    add_post(app, "/v1/images/edits", Edit, answer, (OF_OPENAI, {"image": "@photo.png", "prompt": ""}))


def _request(asked: Images, i: int, engine: Engine) -> schema.Asked:
    common: dict[str, Any] = {"seed": asked.seed + i, "steps": asked.steps, "prompt": asked.prompt}
    size = None if asked.size in (None, "auto") else asked.size
    if isinstance(asked, Edit):
        fields = {"model": asked.model, "image": asked.image, "size": size, "strength": asked.strength}
        return schema.read(schema.Upscale, common | fields)
    model = next(iter(engine.settings.models))  # what decodes; clients name the pipeline
    common |= {"model": model, "pipeline": asked.model}
    if size is not None:
        scale = engine.models.get(model, {}).get("scale", 1)
        width, height = (int(side) for side in re.findall(r"\d+", size))
        if width % scale or height % scale:
            raise ServiceError("invalid_field", f"size={size}: expected multiples of {scale}", "size")
        common |= {"width": width // scale, "height": height // scale}
    return schema.read(schema.Generate, common)


async def _encoded(job: Job, pixels: Any, asked: Images) -> str:
    data = await http.encoded(job, pixels, asked.output_format, asked.output_compression)
    return base64.b64encode(data).decode()


def _facts(job: Job, asked: Images) -> dict[str, Any]:
    width, height = job.size or (0, 0)
    return {"background": "opaque", "output_format": asked.output_format, "size": f"{width}x{height}"}


async def _streamed(job: Job, asked: Images, engine: Engine) -> AsyncGenerator[str]:
    """Estimates of the image and the image, as OpenAI's events."""
    told, what = 0, "image_edit" if isinstance(asked, Edit) else "image_generation"
    try:
        async for event, more in http.events_of(job):
            if event == "preview" and told < asked.partial_images:
                image = Image.open(io.BytesIO(base64.b64decode(more["image"].partition(",")[2]))).convert("RGB")
                small = io.BytesIO()
                image.save(small, FORMATS[asked.output_format])
                yield _event(f"{what}.partial_image", small.getvalue(), job, asked, partial_image_index=told)
                told += 1
        pixels = job.wait(0)
        data = await http.encoded(job, pixels, asked.output_format, asked.output_compression)
        details = {"image_tokens": 0, "text_tokens": 0}
        usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0, "input_tokens_details": details}
        yield _event(f"{what}.completed", data, job, asked, usage=usage)
    except ServiceError as failure:
        yield http.sse("error", http.error_body(failure))
    finally:
        if not job.ended:  # the client has gone
            engine.cancel(job)


def _event(kind: str, data: bytes, job: Job, asked: Images, **more: Any) -> str:
    image = base64.b64encode(data).decode()
    facts = {"type": kind, "b64_json": image, "created_at": int(time.time()), "quality": "auto", **_facts(job, asked)}
    return http.sse(kind, facts | more)
