"""The figures of a run on disk: one line of JSON for each image and method, written as they come.

A line is found again by its key, a digest of all that determines the image it measures; so runs with other methods or
settings can share a file, and what has been measured is not measured again. Failures are written, and tried again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixdec.io.json_lines import append_line, read_lines

Figures = Mapping[str, float]  # metric -> value, of one image


@dataclass(frozen=True)
class Row:
    """What one method scores on one image.

    Attributes:
        figures: by metric, "seconds" among them; NaN where a metric gave that.
        failed: by metric, why there is no figure.
        key: what it is found by, and its crop and features are named after.
        original: the same of the image that it is measured against; None without one.
        cropped: the image is the middle of its photograph.
        earlier: an earlier run measured all of it.
    """

    image: str
    method: str
    figures: Figures
    failed: Mapping[str, str]
    key: str
    original: str | None = None
    cropped: bool = False
    earlier: bool = False


@dataclass(frozen=True)
class Broken:
    """An image that could not be used (`method` None), or that one method failed on; the reason in a line."""

    image: str
    method: str | None
    reason: str


def plain(value: float) -> float | str | None:
    """A figure for JSON, which has neither infinity ("inf") nor NaN (None)."""
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)


def from_plain(value: float | str | None) -> float:
    """What `plain` was given."""
    return math.nan if value is None else float(value)


def read_results(path: Path) -> dict[str, dict[str, float]]:
    """key -> metric -> figure. See `read_lines`.

    Raises:
        ValueError: a line is not one that `append_result` wrote.
        OSError: the file cannot be read, or an unfinished last line not be removed.
    """

    def read(record: dict[str, Any]) -> tuple[str, dict[str, float]]:
        return str(record["key"]), {name: from_plain(value) for name, value in record["figures"].items()}

    rows: dict[str, dict[str, float]] = {}
    for key, figures in read_lines(path, read, "is no row of figures; delete the file to measure anew"):
        rows.setdefault(key, {}).update(figures)
    return rows


def append_result(path: Path, row: Row, made_with: Mapping[str, object]) -> None:
    """Add a line, and see it on the disk.

    Raises:
        OSError: the file cannot be written to.
    """
    figures = {name: plain(value) for name, value in row.figures.items()}
    record = {"key": row.key, "image": row.image, "method": row.method, "made_with": made_with, "figures": figures}
    append_line(
        path, json.dumps({**record, **({"failed": dict(row.failed)} if row.failed else {})}, ensure_ascii=False)
    )
