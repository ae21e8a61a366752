"""Captions of an image: up to three lengths, long, medium and short, or one plain text.

Kept as a mapping from the name of the caption to its text; training draws one of them uniformly.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pixdec.io.files import reason_of

LENGTHS = ("long", "medium", "short")
PLAIN = "text"  # the name of a caption that has no length: that of a .txt


def beside(image: Path) -> dict[str, str]:
    """The captions in the files beside an image, of its name: photo.jpg has photo.json and photo.txt. Empty if none.

    Raises:
        ValueError: as `inside`; or a .json without a caption.
        OSError: a file that is there cannot be read.
    """
    files = {name: image.with_suffix(f".{name}") for name in ("json", "txt")}
    members = {name: file.read_bytes() for name, file in files.items() if file.is_file()}
    found = inside(members, image.stem)
    if "json" in members and not inside({"json": members["json"]}, image.stem):
        given = _object(_text(members["json"], files["json"].name), files["json"].name)
        raise ValueError(
            f"{files['json'].name}: expected texts under {', '.join(LENGTHS)}, or some of them; it has "
            f"{', '.join(map(repr, given)) or 'nothing'}"
        )
    return found


def inside(members: Mapping[str, bytes], key: str) -> dict[str, str]:
    """The captions of a shard's sample, given its members by extension ("json", "txt"); `key` is its name.

    Our own shards have them in the .json under "captions"; of others are understood the three lengths or "caption" in
    the .json, and a .txt. Empty if there are none; a .json of other facts is none.

    Raises:
        ValueError: one line: a file that is not UTF-8 or not JSON, or a caption that is not a text.
    """
    found: dict[str, object] = {}
    if "json" in members:
        facts = _object(_text(members["json"], f"{key}.json"), f"{key}.json")
        own = facts.get("captions")
        if isinstance(own, dict):
            found |= cast("dict[str, object]", own)
        elif own is not None:
            found["captions"] = own
        elif any(name in facts for name in LENGTHS):
            found |= {name: facts[name] for name in LENGTHS if name in facts}
        elif "caption" in facts:
            found[PLAIN] = facts["caption"]
    if "txt" in members:
        found = {name: text for name, text in found.items() if text is not None}
        found[PLAIN] = _text(members["txt"], f"{key}.txt")
    return {name: _caption(text, f"{key}.json", "caption" if name == PLAIN else name) for name, text in found.items()}


def _caption(value: object, name: str, key: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name}: its caption {key!r} is {'null' if value is None else type(value).__name__}, no text")
    return value.strip()


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: it is not UTF-8 (byte {error.start})") from error


def _object(text: str, name: str) -> dict[str, object]:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: it is not JSON ({reason_of(error)})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{name}: expected a JSON object; it holds a {type(value).__name__}")
    return cast("dict[str, object]", value)
