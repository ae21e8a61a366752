"""The figures of a run on disk: one line of JSON for each image and method, written as they come.

A line is found again by its key, a digest of all that determines the image it measures; so runs with other methods or
settings can share a file, and what has been measured is not measured again.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pixdec.io.files import replacing


def key_of(settings: Mapping[str, object]) -> str:
    """A digest of settings (JSON); the order of their names does not matter."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]


def read_rows(path: Path) -> dict[str, dict[str, float]]:
    """key -> metric -> figure. A missing file holds none; a last line that an interrupted run left unfinished is
    removed from it.

    Raises:
        ValueError: another line is not one that `append_row` wrote.
        OSError: the file cannot be read, or the last line not be removed.
    """
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with replacing(path) as temporary:
            temporary.write_bytes(whole)
    rows: dict[str, dict[str, float]] = {}
    for number, line in enumerate(whole.splitlines(), 1):
        try:
            record = cast("dict[str, object]", json.loads(line))
            figures = cast("dict[str, float | str]", record["figures"])
            rows.setdefault(str(record["key"]), {}).update({name: float(value) for name, value in figures.items()})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path}: line {number} is no row of figures; delete the file to measure anew") from error
    return rows


def append_row(path: Path, key: str, figures: Mapping[str, float], about: Mapping[str, object]) -> None:
    """Add a line. JSON has no infinity, so that of a perfect PSNR is the string "inf".

    Raises:
        OSError: it cannot be written; one line that names the file.
    """
    plain = {name: value if math.isfinite(value) else str(value) for name, value in figures.items()}
    line = json.dumps({"key": key, **about, "figures": plain}, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        with path.open("ab") as file:  # whole in one write
            file.write(line.encode())
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror or error}") from error


__all__ = ["append_row", "key_of", "read_rows"]
