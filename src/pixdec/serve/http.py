"""The engine over HTTP: routes, errors and events. `serve` runs it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pixdec import __version__
from pixdec.serve import schema
from pixdec.serve.bodies import fields_of
from pixdec.serve.engine import Engine
from pixdec.serve.jobs import FORMATS, Job, Pixels, ServiceError
from pixdec.serve.metrics import Metrics
from pixdec.serve.openapi import AN_IMAGE, add_post

logger = logging.getLogger("pixdec.serve")
WEB = Path(__file__).with_name("web")
OPEN = ("/healthz", "/readyz", "/metrics", "/page", "/favicon.ico")  # without a key; and the page itself
UNLOGGED = ("/healthz", "/readyz", "/metrics", "/page/")
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_CSP = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
TOLD = ("space", "spaces", "scale", "default_steps", "licence", "needs_text", "encodes")  # of a decoder


def app_for(engine: Engine) -> FastAPI:
    """The application around an engine that is started and closed by someone else."""
    app = FastAPI(title="pixdec", version=__version__, docs_url=None, redoc_url=None)
    app.state.engine = engine
    _add_answers(app, engine)
    _add_jobs(app, engine)
    _add_state(app, engine)
    from pixdec.serve.openai import add_openai  # which builds on this module

    add_openai(app, engine)
    app.add_exception_handler(ServiceError, lambda request, error: refusal(error))  # pyright: ignore[reportArgumentType]
    app.add_exception_handler(HTTPException, _not_found)  # pyright: ignore[reportArgumentType]
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(engine.settings.origins),
        allow_methods=["GET", "POST", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
        expose_headers=["X-Request-Id", "Retry-After"],
    )
    app.add_middleware(Around, engine=engine)
    app.mount("/page", StaticFiles(directory=WEB), name="page")
    return app


def refusal(failure: ServiceError) -> JSONResponse:
    """A failure as OpenAI's clients read it."""
    headers = {"Retry-After": str(max(1, round(failure.retry_after)))} if failure.status in (429, 503) else {}
    return JSONResponse(error_body(failure), failure.status, headers)


def error_body(failure: ServiceError) -> dict[str, Any]:
    """A failure in JSON."""
    kind = "server_error" if failure.status >= 500 or failure.status == 429 else "invalid_request_error"
    return {"error": {"message": failure.message, "type": kind, "param": failure.param, "code": failure.code}}


async def _not_found(request: Request, error: HTTPException) -> JSONResponse:
    names = {404: "not_found", 405: "method_not_allowed"}
    return refusal(ServiceError(names.get(error.status_code, "invalid_request"), str(error.detail)))


class Around:
    """What every request gets: an id, a key that is checked, headers that tie a browser's hands, and a line in the
    log. No error of ours shows more than its id."""

    def __init__(self, app: ASGIApp, engine: Engine):
        self.app, self.engine = app, engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["line"] = line = {"id": id, "method": scope["method"], "path": scope["path"]}
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                    (b"content-security-policy", _CSP.encode()),
                    (b"referrer-policy", b"no-referrer"),
                    *([(b"cache-control", b"no-cache")] if scope["path"].startswith("/page/") else []),
                ]
            await send(message)

        try:
            if (failure := self._refused(scope, headers, line)) is not None:
                await refusal(failure)(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        except Exception as error:
            logger.exception("request %s", id)
            if status == 0:
                failure = ServiceError("internal", f"the service failed; its log has {id} ({type(error).__name__})")
                await refusal(failure)(scope, receive, sending)
        finally:
            line.update(status=status, seconds=round(time.perf_counter() - started, 4))
            if not scope["path"].startswith(UNLOGGED):
                logger.info(json.dumps(line))

    def _refused(self, scope: Scope, headers: dict[bytes, str], line: dict[str, Any]) -> ServiceError | None:
        keys, path = self.engine.settings.keys, scope["path"]
        if not keys or path == "/" or path.startswith(OPEN) or scope["method"] == "OPTIONS":
            return None
        given = headers.get(b"authorization", "").removeprefix("Bearer ").encode()
        found = [name for name, key in keys.items() if hmac.compare_digest(key.encode(), given)]
        if not found:
            return ServiceError("invalid_api_key", "no valid key; send Authorization: Bearer KEY")
        line["key"] = found[0]
        return None


def submit(asked: schema.Asked, engine: Engine, *, previews: bool) -> Job:
    """Raises ServiceError as `schema.work_of` and `Engine.submit`."""
    return engine.submit(schema.work_of(asked, engine), deadline=asked.deadline, previews=previews)


async def events_of(job: Job) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """What happens to a job from now on, its present state first, and last done, failed or cancelled."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[tuple[str, dict[str, Any]]]()

    def heard(event: str, more: dict[str, Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(queue.put_nowait, (event, more))

    stop = job.watch(heard)
    try:
        yield "state", {}
        while not job.ended or not queue.empty():
            try:
                event, more = await asyncio.wait_for(queue.get(), 15)
            except TimeoutError:
                event, more = "", {}  # a sign of life
            if event == "preview" or not job.ended:
                yield event, more
        yield job.state if job.state in ("done", "cancelled") else "failed", {}
    finally:
        stop()


async def ended(job: Job, request: Request, engine: Engine) -> Pixels:
    """The result of a job, which is cancelled when its client goes.

    Raises:
        ServiceError: there is none.
    """

    async def over() -> None:
        async with contextlib.aclosing(events_of(job)) as events:
            async for _ in events:
                pass

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.create_task(over()), asyncio.create_task(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        if not job.ended:
            engine.cancel(job)
    return job.wait(0)


async def encoded(job: Job, pixels: Pixels, kind: str, quality: int | None = None) -> bytes:
    """A result as a file; beside the loop, which others need."""
    started = time.perf_counter()
    data = await asyncio.to_thread(pixels.encoded, kind, quality)
    job.seconds["write"] = time.perf_counter() - started
    job.written(job.seconds["write"])
    return data


def note(request: Request, job: Job) -> None:
    """Say in the request's line of the log which job it was."""
    seconds = {name: round(value, 4) for name, value in job.seconds.items()}
    request.state.line.update(job=job.id, kind=job.work.kind, model=job.work.model, state=job.state, **seconds)


# Routes


def _add_answers(app: FastAPI, engine: Engine) -> None:
    async def answer(request: Request, kind: type[schema.Asked]) -> Response:
        asked = schema.read(kind, await fields_of(request, kind, engine))
        job = await asyncio.to_thread(lambda: submit(asked, engine, previews=asked.respond == "job"))
        if asked.respond == "job":
            note(request, job)
            return JSONResponse(job.record(), 202, {"Location": f"/v1/jobs/{job.id}"})
        try:
            data = await encoded(job, await ended(job, request, engine), asked.output_format)
        finally:
            note(request, job)
        headers = {
            "X-Job-Id": job.id,
            "Server-Timing": ", ".join(f"{k};dur={v * 1e3:.1f}" for k, v in job.seconds.items()),
        }
        return Response(data, media_type=f"image/{asked.output_format}", headers=headers)

    for kind, example in (
        (schema.Upscale, {"image": "@photo.png", "profile": "balanced", "seed": 1}),
        (schema.Decode, {"latent": "@x.safetensors", "sigma": 0.2}),
        (schema.Generate, {"prompt": "a red fox", "width": 1024, "height": 768}),
    ):
        add_post(app, f"/v1/{kind.__name__.lower()}", kind, answer, (AN_IMAGE, example))


def _add_jobs(app: FastAPI, engine: Engine) -> None:
    def found(id: str) -> Job:
        job = engine.jobs.get(id)
        if job is None:
            raise ServiceError("job_not_found", f"job {id[:40]!r}: there is none, or it was long ago", "id")
        return job

    @app.get("/v1/jobs/{id}")
    async def job(id: str) -> dict[str, Any]:
        """The record of a job."""
        return found(id).record()

    @app.delete("/v1/jobs/{id}")
    async def cancel(id: str) -> dict[str, Any]:
        """Stop a job, within a step if it runs, and forget its images."""
        job = found(id)
        await asyncio.to_thread(engine.cancel, job)
        job.result = job.first = None
        return job.record()

    @app.get("/v1/jobs/{id}/result")
    async def result(id: str, format: str = "png") -> Response:
        """The image."""
        return await image(found(id), format, "result")

    @app.get("/v1/jobs/{id}/first")
    async def first(id: str) -> Response:
        """The image that the decoder was given."""
        return await image(found(id), "png", "first")

    async def image(job: Job, format: str, which: str) -> Response:
        if format not in FORMATS:
            raise ServiceError("invalid_field", f"format={format[:20]!r}: expected png, webp or jpeg", "format")
        pixels: Pixels | None = getattr(job, which)
        if pixels is None and job.failure is not None and job.state != "cancelled":
            raise job.failure
        if pixels is None and job.ended:
            raise ServiceError("expired", "the image is not kept any more; ask for it again")
        if pixels is None:
            raise ServiceError("not_done", f"the job is {job.state}; there is no image yet")
        return Response(await encoded(job, pixels, format), media_type=f"image/{format}")

    @app.get("/v1/jobs/{id}/events")
    async def events(id: str) -> StreamingResponse:
        """What happens to a job, as server-sent events."""
        job = found(id)

        async def lines() -> AsyncGenerator[str]:
            async for event, more in events_of(job):
                yield sse(event, more if event == "preview" else job.record()) if event else ": alive\n\n"

        return StreamingResponse(lines(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def sse(event: str, data: Any) -> str:
    """A server-sent event."""
    return f"event: {event}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n"


def _add_state(app: FastAPI, engine: Engine) -> None:
    metrics = Metrics(engine)

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What decodes here."""
        limits, loaded = engine.settings.limits, {name for worker in engine.workers for name in worker.loaded}
        data = list[dict[str, Any]]()
        for name in engine.settings.models:
            known = engine.models.get(name, {})
            speed = engine.speed(name)
            data.append(
                {
                    "id": name,
                    "object": "model",
                    "owned_by": "pixdec",
                    **{key: known.get(key) for key in TOLD},
                    "steps": [1, min(limits.steps, known.get("steps", [1, None])[1] or limits.steps)],
                    "loaded": name in loaded,
                    "megapixels_per_second": None if speed is None else round(speed / 1e6, 4),
                }
            )
        for name in engine.settings.pipelines:
            data.append({"id": name, "object": "model", "owned_by": "pixdec", "kind": "pipeline"})
        profiles = {name: each.model_dump(exclude_none=True) for name, each in engine.settings.profiles.items()}
        return {"object": "list", "data": data, "limits": limits.model_dump(), "profiles": profiles}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "alive", "version": __version__}

    @app.get("/readyz")
    async def readyz() -> JSONResponse:
        """Whether requests would be taken; if not, what is missing."""
        missing = engine.missing()
        return JSONResponse({"ready": not missing, "missing": missing}, 503 if missing else 200)

    @app.get("/metrics", include_in_schema=False)
    def read_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response((WEB / "index.html").read_bytes(), media_type="text/html")
