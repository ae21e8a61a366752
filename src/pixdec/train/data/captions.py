"""Captions of an image: up to three lengths, long, medium and short, or one plain text.

Kept as a mapping from the name of the caption to its text; training draws one of them uniformly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

LENGTHS = ("long", "medium", "short")
PLAIN = "text"  # the name of a caption that has no length: that of a .txt


def beside(image: Path) -> dict[str, str]:
    """The captions in the files beside an image, of its name: photo.jpg has photo.json and photo.txt. Empty if none.

    Raises:
        ValueError: one line: a file that is not UTF-8, or a .json without any of the three lengths.
        OSError: a file that is there cannot be read.
    """
    found: dict[str, str] = {}
    lengths, plain = image.with_suffix(".json"), image.with_suffix(".txt")
    if lengths.is_file():
        found |= _lengths(_text(lengths.read_bytes(), lengths.name), lengths.name)
    if plain.is_file():
        found[PLAIN] = _text(plain.read_bytes(), plain.name).strip()
    return found


def inside(members: Mapping[str, bytes]) -> dict[str, str]:
    """The captions of a shard's sample, given its members by extension ("json", "txt").

    Our own shards have them in the .json under "captions"; of others are understood the three lengths or "caption" in
    the .json, and a .txt. Empty if there are none; a .json of something else is none.
    """
    found: dict[str, str] = {}
    facts = _object(members.get("json", b"{}"))
    own = facts.get("captions")
    if isinstance(own, dict):
        found |= {name: text for name, text in cast("dict[str, object]", own).items() if isinstance(text, str)}
    elif any(name in facts for name in LENGTHS):
        found |= {name: text for name in LENGTHS if isinstance(text := facts.get(name), str)}
    elif isinstance(caption := facts.get("caption"), str):
        found[PLAIN] = caption
    if "txt" in members:
        found[PLAIN] = members["txt"].decode("utf-8", errors="replace").strip()
    return found


def _lengths(text: str, name: str) -> dict[str, str]:
    expected = f"{name}: expected a JSON object with texts under {', '.join(LENGTHS)}, or some of them"
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{expected}; it is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{expected}; it holds a {type(value).__name__}")
    given = cast("dict[str, object]", value)
    found = {key: given[key] for key in LENGTHS if key in given}
    if not found:
        raise ValueError(f"{expected}; it has {', '.join(map(repr, given)) or 'nothing'}")
    for key, caption in found.items():
        if not isinstance(caption, str):
            raise ValueError(f"{expected}; its {key} is a {type(caption).__name__}")
    return {key: str(caption).strip() for key, caption in found.items()}


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: it is not UTF-8 (byte {error.start})") from error


def _object(data: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(data)
    except ValueError:
        return {}
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}
