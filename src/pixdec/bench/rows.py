"""The file of a bench: what it was measured on, and a row for each method and size, written whole after every row.

All rows of a file are of one machine, one set of versions and one set of settings, or they would not compare.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

from pixdec.bench.settings import BenchSettings
from pixdec.io.files import replacing

FORMAT = 1
Status = Literal["ok", "out of memory", "over the limit", "killed", "failed"]
# Settings that every row of a file shares; the others say which rows there are, or how long to wait for them.
SHARED = ("model", "dtype", "steps", "batch", "runs", "warmup")


@dataclass(frozen=True)
class Row:
    """One method at one output size. Where there are figures `status` is "ok", else `reason` says in a line why not.

    Attributes:
        first: seconds of the first call, with compiling. seconds: of each call that counts. clock: the same by the
            clock.
        memory: of `measure.Memory`, in bytes. counted: of `roofline.Counted`, for ours.
        finite: whether the images were.
    """

    method: str
    side: int
    batch: int
    status: Status
    reason: str = ""
    first: float | None = None
    seconds: tuple[float, ...] = ()
    clock: tuple[float, ...] = ()
    memory: Mapping[str, Any] = field(default_factory=dict[str, Any])
    counted: Mapping[str, int] = field(default_factory=dict[str, int])
    finite: bool | None = None

    @property
    def megapixels(self) -> float:
        """Of the whole batch."""
        return self.batch * self.side**2 / 1e6

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def is_ours(self) -> bool:
        """Whether it is a decode by the bench's model."""
        return self.method in ("plain", "eager", "compiled", "graphs")

    def line(self) -> str:
        """The row as a person reads it."""
        head = f"{self.method}  {self.side}x{self.side}"
        if self.status != "ok":
            return f"{head}  {self.status}" + (f": {self.reason}" if self.reason else "")
        spread = f"{seconds_of(min(self.seconds))} to {seconds_of(max(self.seconds))}, n {len(self.seconds)}"
        memory = f"{self.memory['peak'] / 1e6:,.0f} MB"
        first = "" if self.first is None else f", first {seconds_of(self.first)}"
        return f"{head}  {seconds_of(self.median)} ({spread}{first})  {memory}"


@dataclass(frozen=True)
class Bench:
    """All of a file. `machine`, `versions`, `libraries`, `model`, `peaks`: what a look found (see `child`).
    `settings`: those of `SHARED`, settled. `commands`: those that made the rows."""

    machine: Mapping[str, Any]
    versions: Mapping[str, Any]
    libraries: Mapping[str, str]
    model: Mapping[str, Any]
    settings: Mapping[str, Any]
    peaks: Mapping[str, float]
    commands: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()

    def row(self, method: str, side: int) -> Row | None:
        """That row, if there is one."""
        return next((row for row in self.rows if (row.method, row.side) == (method, side)), None)

    @property
    def methods(self) -> list[str]:
        """Ours first, then the others in the order in which they came."""
        names = dict.fromkeys(row.method for row in sorted(self.rows, key=lambda row: not row.is_ours))
        return list(names)

    @property
    def sides(self) -> list[int]:
        """Small to large."""
        return sorted({row.side for row in self.rows})


def shared_settings(settings: BenchSettings, look: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that every row of a file shares, with what the machine and the model settled."""
    chosen = {name: getattr(settings, name) for name in SHARED}
    return {**chosen, "dtype": look["model"]["dtype"], "steps": look["model"]["steps"]}


def read_bench(path: Path) -> Bench | None:
    """The file, None if there is none.

    Raises:
        ValueError: it is none that `write_bench` wrote.
        OSError: it cannot be read.
    """
    if not path.exists():
        return None
    try:
        record = cast("dict[str, Any]", json.loads(path.read_text(encoding="utf-8")))
        if record.pop("format") != FORMAT:
            raise ValueError("another format")
        rows = [_row(each) for each in record.pop("rows")]
        return Bench(commands=tuple(record.pop("commands")), rows=tuple(rows), **record)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path}: no file of this version of `pixdec bench`; choose another folder with -o") from error


def _row(record: dict[str, Any]) -> Row:
    seconds, clock = tuple(record.pop("seconds")), tuple(record.pop("clock"))
    return Row(**record, seconds=seconds, clock=clock)


def write_bench(bench: Bench, path: Path) -> None:
    """Whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    record = {"format": FORMAT, **asdict(bench)}
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def check_same(path: Path, before: Bench, now: Bench) -> None:
    """Raises ValueError unless rows of now may stand beside those of before."""
    pairs = (
        ("measured on", before.machine, now.machine),
        ("measured with", before.versions, now.versions),
        ("measured with", before.settings, now.settings),
        ("measured of", before.model, now.model),
    )
    for how, old, new in pairs:
        for name in {**old, **new}:
            if old.get(name) != new.get(name):
                _refuse(path, how, name, old.get(name), new.get(name))
    for name, version in before.libraries.items():
        if now.libraries.get(name) != version:
            _refuse(path, "measured with", name, version, now.libraries.get(name))


def _refuse(path: Path, how: str, name: str, old: object, new: object) -> None:
    raise ValueError(
        f"{path}: {how} {name} {old}, this is {new}; rows of both would not compare: choose another folder with -o"
    )


def seconds_of(seconds: float) -> str:
    """With three digits, and its unit."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"


def without(rows: Sequence[Row], *, failed: bool) -> tuple[Row, ...]:
    """The rows, or only those with figures."""
    return tuple(row for row in rows if row.status == "ok" or not failed)
