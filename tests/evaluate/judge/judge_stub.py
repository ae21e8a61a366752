"""What the stub of an endpoint answers, and pictures to judge."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
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
