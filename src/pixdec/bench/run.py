"""A bench from beginning to end: a child process for each row, the file after each, the same command goes on.

for row in bench(BenchSettings(), "runs/bench"):
    print(row.line())
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from pixdec.bench.rows import Bench, Row, Status, check_same, read_bench, shared_settings, without, write_bench
from pixdec.bench.settings import BenchSettings, Dtype, Job, job_of

FILE = "bench.json"  # in the output folder
LOOK_LIMIT = 600.0  # seconds, to load the model and measure the peaks


def bench(settings: BenchSettings, out: str | Path, *, command: str = "", retry: bool = False) -> Iterator[Row]:
    """Yields the rows that are measured now, small outputs first, each when OUT/bench.json holds it. Rows that are in
    the file already are left, `retry`: only those with figures.

    Raises:
        ValueError: the device or the model cannot be used, or the file's rows would not compare with these.
        OSError: the file cannot be read or written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE
    before = read_bench(path)
    look = _look(settings, peaks=before is None)
    now = Bench(
        machine=look["machine"],
        versions=look["versions"],
        libraries=look["libraries"],
        model=look["model"],
        settings=shared_settings(settings, look),
        peaks=look.get("peaks", {}),
    )
    cell = now.model["cell"]
    for side in settings.sides if settings.ours else ():
        if side % cell:
            raise ValueError(f"--sides {side}: {now.model['name']} gives multiples of {cell} pixels")
    if before is not None:
        check_same(path, before, now)
        libraries = {**before.libraries, **now.libraries}
        rows = without(before.rows, failed=retry)
        now = replace(now, peaks=before.peaks, libraries=libraries, commands=before.commands, rows=rows)
    if command and command not in now.commands:
        now = replace(now, commands=(*now.commands, command))
    write_bench(now, path)
    dtype: Dtype = now.model["dtype"]
    for method, side in settings.tasks():
        if now.row(method, side) is None:
            job = replace(job_of(settings, method, side), device=look["device"], dtype=dtype, scale=now.model["scale"])
            row = _row(job, run_child(job))
            now = replace(now, rows=(*now.rows, row))
            write_bench(now, path)
            yield row


def run_child(job: Job) -> dict[str, Any]:
    """The outcome of a job in a process of its own: {"status": "ok", …}, or another status and a reason in a line."""
    with tempfile.TemporaryDirectory() as folder:
        result, said = Path(folder) / "result.json", Path(folder) / "said"
        with said.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, "-m", "pixdec.bench.child", str(result)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                start_new_session=True,
            )
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it is gone already; its exit code tells
                process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
                process.stdin.flush()
            code = process.wait(timeout=job.limit)
        except subprocess.TimeoutExpired:
            return {"status": "over the limit", "reason": f"not done after {job.limit:g} s"}
        finally:
            _end(process)
        if result.exists():
            return cast("dict[str, Any]", json.loads(result.read_text()))
        last = (said.read_text(errors="replace").strip().splitlines() or [""])[-1]
        if code < 0:
            name = signal.Signals(-code).name
            likely = " (most likely the system, which had no memory left)" if name == "SIGKILL" else ""
            return {"status": "killed", "reason": f"ended by {name}{likely}{f': {last}' if last else ''}"}
        return {"status": "failed", "reason": last or f"ended with code {code}"}


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process with what it started, and its pipe."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin is not None:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()


def _look(settings: BenchSettings, *, peaks: bool) -> dict[str, Any]:
    job = replace(job_of(settings, None, peaks=peaks), limit=LOOK_LIMIT)
    found = run_child(job)
    if found["status"] != "ok":
        raise ValueError(f"--model {settings.model}: {found['reason']}")
    return found


def _row(job: Job, outcome: Mapping[str, Any]) -> Row:
    status: Status = outcome["status"]
    assert job.method is not None
    if status != "ok":
        return Row(job.method, job.side, job.batch, status, outcome["reason"])
    return Row(
        method=job.method,
        side=job.side,
        batch=job.batch,
        status=status,
        first=outcome["first"],
        seconds=tuple(outcome["seconds"]),
        clock=tuple(outcome["clock"]),
        memory=outcome["memory"],
        counted=outcome.get("counted", {}),
        finite=outcome["finite"],
    )


__all__ = ["FILE", "bench", "run_child"]
