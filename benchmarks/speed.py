"""The table of times and peaks: a child process for each row, the files written after each, and resumed.

for row in measure_all(Settings(sides=(512,)), "runs/bench"):
    print(row.line())
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from benchmarks.methods import check_name
from pixdec.io.files import write_whole

SIDE_MULTIPLE = 64  # output pixels: whole latent cells for every method, whether enlarged or not
SHARED = ("model", "dtype", "steps", "runs", "warmup")  # settings that every row of a file has in common
NOTES = """
Time is the median of the calls that count (least to most), from a latent to images, float32 in [0,1], both on the
device. Memory is the most that was held at once from the first call on, weights included; on a CPU without the
libraries of the process. Captions are random embeddings: no caption encoder is loaded.
"""


@dataclass(frozen=True)
class Settings:
    """What is measured.

    Attributes:
        model: a decoder by name, file or folder; "random:v1" is the released network with random weights.
        sides: of the square outputs, in pixels.
        methods: ours are plain, eager, compiled, graphs, int8 and int8-compiled; vae:flux1, vae:flux2, vae:sdxl (and
            with :tiled), tiny or taef2, alone or with +lanczos or +real-esrgan, are what one would take instead.
        device: such as cpu or cuda; None takes the fastest there is.
        dtype: precision of all methods; None takes the model's on this device.
        steps: decoding steps; None takes the model's own.
        runs: calls that count.
        warmup: calls before them; the first is reported apart.
        limit: seconds for a row with loading; runs that would not fit any more are left out.
    """

    model: str = "pixdec-nano"
    sides: Sequence[int] = (512, 1024)
    methods: Sequence[str] = ("eager", "vae:flux2+lanczos", "tiny+lanczos")
    device: str | None = None
    dtype: Literal["float32", "bfloat16"] | None = None
    steps: int | None = None
    runs: int = 3
    warmup: int = 1
    limit: float = 600.0

    def __post_init__(self) -> None:
        for side in self.sides:
            if side < 1 or side % SIDE_MULTIPLE:
                raise ValueError(f"--sides {side}: expected multiples of {SIDE_MULTIPLE} (output pixels)")
        for name in self.methods:
            check_name(name)
        for option in ("runs", "warmup", "steps", "limit"):
            value = getattr(self, option)
            if value is not None and value <= 0:
                raise ValueError(f"--{option} {value}: expected more than 0")


@dataclass(frozen=True)
class Row:
    """A method at one output size.

    Attributes:
        first: seconds of the first call, with loading of kernels and compiling.
        seconds: of each call that counts.
        peak: most bytes held at once from the first call on, weights included.
        weights: bytes of them.
        reason: in a line, where there are no figures.
    """

    method: str
    side: int
    status: Literal["ok", "out of memory", "over the limit", "failed"]
    reason: str = ""
    first: float = 0.0
    seconds: Sequence[float] = ()
    peak: int = 0
    weights: int = 0

    @property
    def time(self) -> str:
        """Median, spread, and for what compiles the first call."""
        least, median, most = (seconds_of(f(self.seconds)) for f in (min, statistics.median, max))
        return f"{median} ({least} to {most}), first {seconds_of(self.first)}"

    @property
    def memory(self) -> str:
        """Peak, and how much of it are weights."""
        return f"{self.peak / 1e9:.2f} GB, weights {self.weights / 1e9:.2f}"

    def line(self) -> str:
        """The row as a person reads it."""
        figures = f"{self.time}  {self.memory}" if self.status == "ok" else f"{self.status}: {self.reason}"
        return f"{self.method}  {self.side}x{self.side}  {figures}"


def measure_all(settings: Settings, output: str | Path, *, command: str = "", retry: bool = False) -> Iterator[Row]:
    """Yields the rows that are measured now, small outputs first, each when OUTPUT.json and OUTPUT.md hold it.

    Rows that are there already stay; with `retry` only those with figures.

    Raises:
        ValueError: the device or the model cannot be used, or the file's rows would not compare with these.
        OSError: a file cannot be read or written.
    """
    path = Path(f"{output}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = run_child(settings)
    if facts.pop("status") != "ok":
        raise ValueError(f"--model {settings.model}: {facts['reason']}")
    facts |= {name: getattr(settings, name) for name in SHARED}
    rows = [row for row in _rows_beside(path, facts) if row.status == "ok" or not retry]
    for side in sorted(settings.sides):
        for method in settings.methods:
            if any((row.method, row.side) == (method, side) for row in rows):
                continue
            rows.append(Row(method, side, **run_child(settings, method, side)))
            record = {"facts": facts, "rows": [asdict(row) for row in rows]}
            for file, text in ((path, json.dumps(record, indent=1)), (f"{output}.md", page(facts, rows, command))):
                write_whole(file, text + "\n")
            yield rows[-1]


def _rows_beside(path: Path, facts: dict[str, Any]) -> list[Row]:
    """The rows of a file, if there is one; ValueError if they were measured on anything else than those of now."""
    if not path.exists():
        return []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        known, rows = record["facts"], [Row(**row) for row in record["rows"]]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: not a table of this benchmark; choose another --output") from error
    for name, value in facts.items():
        if known.get(name) != value:
            raise ValueError(
                f"{path}: measured with {name} {known.get(name)}, this is {value}; the rows would not compare: "
                "remove the file or choose another --output"
            )
    return rows


def run_child(settings: Settings, method: str | None = None, side: int = 0) -> dict[str, Any]:
    """What a process of its own finds: of a method, or with None the facts of machine and model.

    Returns:
        {"status": "ok", …}, or another status and the reason in a line.
    """
    limit = settings.limit if method is not None else max(settings.limit, 600.0)
    job = {"settings": asdict(replace(settings, limit=limit)), "method": method, "side": side, "started": time.time()}
    root = str(Path(__file__).resolve().parent.parent)
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder) / "result.json", Path(folder) / "said"
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.child", str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", root)])},
                start_new_session=True,
            )
        assert process.stdin is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # it is gone already; its exit code tells
                process.stdin.write(json.dumps(job).encode() + b"\n")
                process.stdin.flush()
            code = process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return {"status": "over the limit", "reason": f"not done after {limit:g} s"}
        finally:
            with contextlib.suppress(ProcessLookupError, BrokenPipeError):
                os.killpg(process.pid, signal.SIGKILL)  # with what it started
            process.wait()
            process.stdin.close()
        if result.exists():
            return json.loads(result.read_text())
        last = (said.read_text(errors="replace").strip().splitlines() or [""])[-1]
        if code == -signal.SIGKILL:
            return {"status": "out of memory", "reason": f"killed, most likely by the system {last}".rstrip()}
        return {"status": "failed", "reason": f"exit code {code}: {last}"}


def page(facts: dict[str, Any], rows: Sequence[Row], command: str) -> str:
    """The Markdown of a table."""
    measured = [f"- {name}: {value}" for name, value in facts.items()]
    lines = [f"# Time and memory: {facts['network']}", "", "Made by", "", f"    {command}", "", *measured, NOTES]
    lines += ["## Time", "", *_grid(rows, lambda row: row.time)]
    lines += ["", "## Peak memory", "", *_grid(rows, lambda row: row.memory)]
    missing = [f"- {row.line()}" for row in rows if row.status != "ok"]
    return "\n".join([*lines, *(["", "## Without figures", "", *missing] if missing else [])])


def _grid(rows: Sequence[Row], show: Callable[[Row], str]) -> list[str]:
    """Methods down, sides across."""
    sides = sorted({row.side for row in rows})
    cells = {(row.method, row.side): show(row) if row.status == "ok" else row.status for row in rows}
    methods = dict.fromkeys(row.method for row in rows)
    return markdown_table(
        ("", *(f"{side}²" for side in sides)),
        [(method, *(cells.get((method, side), "") for side in sides)) for method in methods],
    )


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Names on the left, figures on the right."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---", *["---:"] * (len(head) - 1)], *rows)]


def seconds_of(seconds: float) -> str:
    """With three digits, and its unit."""
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
