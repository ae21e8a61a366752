"""Files of one JSON object a line that a killed run leaves whole, and digests of JSON."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pixdec.io.files import write_whole

T = TypeVar("T")


def json_digest(value: Mapping[str, object]) -> str:
    """SHA-256 of JSON, in hex; the order of names does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def key_of(value: Mapping[str, object]) -> str:
    """A short digest of JSON, to find a line by."""
    return json_digest(value)[:32]


def read_lines(path: Path, read: Callable[[dict[str, Any]], T], otherwise: str) -> list[T]:
    """What `read` makes of each line, in order. A missing file holds none; a last line that an interrupted run left
    unfinished is removed from it.

    Raises:
        ValueError: `read` cannot make anything of a line; the message names it and goes on with `otherwise`.
        OSError: the file cannot be read, or the last line not be removed.
    """
    if not path.exists():
        return []
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        write_whole(path, whole)
    found = list[T]()
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            found.append(read(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} {otherwise}") from error
    return found


def append_line(path: Path, line: str) -> None:
    """Add a line of JSON, and see that it is on the disk.

    Raises:
        OSError: it cannot be written; one line that names the file.
    """
    try:
        with path.open("ab", buffering=0) as file:  # whole in one write
            file.write(f"{line}\n".encode())
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error
