"""Routes that make images, and what the OpenAPI document says of them beyond their fields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from pixdec.serve.jobs import FORMATS
from pixdec.serve.settings import Strict

A = TypeVar("A", bound=Strict)
Answer = Callable[[Request, type[A]], Awaitable[Response]]
Answers = tuple[Mapping[str, Any], Mapping[str, object]]
_REFUSALS = {
    400: "a field is wrong, which param names",
    401: "no valid key",
    404: "no such model or pipeline",
    413: "the body, or the image that was asked for, is too large",
    415: "no image, or no latent",
    422: "the file cannot be used",
    429: "the queue is full: again after Retry-After",
    503: "no worker, or no memory: again after Retry-After",
}
_ERROR = {"message": "steps=9: expected 1 to 4", "type": "invalid_request_error", "param": "steps"}
_REFUSAL = {"application/json": {"example": {"error": {**_ERROR, "code": "invalid_field"}}}}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_B64 = {"created": 1764500000, "output_format": "png", "data": [{"b64_json": "iVBORw0KGgo..."}]}
_JOB = {"id": "Yx3bqM1t0sQeZk2A", "object": "job", "state": "queued", "position": 0}

AN_IMAGE: dict[str, Any] = {
    "200": {"description": "the image", "content": {f"image/{each}": _BINARY for each in FORMATS}},
    "202": {"description": "with respond=job: its record", "content": {"application/json": {"example": _JOB}}},
}
OF_OPENAI: dict[str, Any] = {
    "200": {
        "description": "the images; with stream, their events",
        "content": {"application/json": {"example": _B64}, "text/event-stream": {}},
    }
}


def add_post(app: FastAPI, path: str, kind: type[A], answer: Answer[A], answers: Answers) -> None:
    """Add a route that takes `kind`, a form or JSON.

    Args:
        app: where.
        path: of the route.
        kind: its docstring is that of the route.
        answer: called with the request and `kind`.
        answers: what the document says of success, and an example of what is asked.
    """

    async def route(request: Request) -> Response:
        return await answer(request, kind)

    told, example = answers
    media = {"schema": kind.model_json_schema(), "example": example}
    refusals = {str(status): {"description": text, "content": _REFUSAL} for status, text in _REFUSALS.items()}
    content = {"multipart/form-data": media, "application/json": media}
    extra = {"requestBody": {"required": True, "content": content}, "responses": {**told, **refusals}}
    added = app.post(path, name=kind.__name__, description=kind.__doc__, response_class=Response, openapi_extra=extra)
    added(route)
