"""What a verb says: progress and results to a terminal, JSON to machines, nothing to a pipe, failures to stderr."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from pixdec.io.files import first_line_of, one_line

if TYPE_CHECKING:
    from tqdm import tqdm

    from pixdec.cli.targets import Job
    from pixdec.decoder import PixelDecoder

T = TypeVar("T")
Made = tuple[dict[str, object], float]
"""What was saved with an image, and the seconds that it took."""
_ARGUMENT = re.compile(r"^([a-z_]+)=('[^']*'|\"[^\"]*\"|[^\s:;,]+)(?=[:;,\s])")
TRACEBACK = "PIXDEC_TRACEBACK"


class Report:
    """The outcome of a run over many inputs: a bad one is one line on stderr, and the rest is still done.

    With `json_lines` every input gives one JSON object on stdout: the record of `done`, or {"input", "error"}.
    """

    def __init__(self, *, json_lines: bool) -> None:
        self.json_lines = json_lines
        self.failures = 0

    @contextmanager
    def attempt(self, source: str | Path) -> Generator[None]:
        """An error of the block is reported as a failure of `source`, and goes no further."""
        try:
            yield
        except BrokenPipeError:
            raise
        except Exception as error:
            self.failed(source, error)

    def failed(self, source: str | Path, error: Exception) -> None:
        """Report the failure of an input."""
        self.failures += 1
        message = explained(error)
        tell(message if str(source) in message else f"{source}: {message}")
        if self.json_lines:
            print(json.dumps({"input": str(source), "error": message}), flush=True)

    def done(self, record: Mapping[str, object], summary: str) -> None:
        """One finished input: `record` for machines, `summary` for a terminal."""
        if self.json_lines:
            print(json.dumps(record), flush=True)
        elif sys.stdout.isatty():
            _tqdm_write(summary, to_stdout=True)

    def outcome(self, job: Job, made: Made | Exception) -> None:
        """An image that was written, or why it was not."""
        with self.attempt(job.source):
            if isinstance(made, Exception):
                raise made
            settings, taken = made
            seconds, width, height = round(taken, 3), settings["width"], settings["height"]
            facts = {"width": width, "height": height, "seconds": seconds, "settings": settings}
            self.done(
                {"input": str(job.source), "output": str(job.target), **facts},
                f"{job.target}  {width}x{height}  {seconds:.1f} s",
            )

    def left(
        self, verb: str, asked: Mapping[T, Mapping[str, object]], job: Callable[[T], Job], *, again: bool
    ) -> list[T]:
        """Those whose outputs are not there, made by this verb with what was asked; the others are told as skipped."""
        from pixdec.generation.records import is_made

        there = [] if again else [each for each in asked if is_made(job(each).target, verb, asked[each])]
        self.skip([job(each) for each in there], len(asked))
        made = set(there)
        return [each for each in asked if each not in made]

    def skip(self, jobs: Sequence[Job], of: int) -> None:
        """Those of so many jobs whose outputs exist already."""
        for job in jobs if self.json_lines else ():
            self.done({"input": str(job.source), "output": str(job.target), "skipped": True}, "")
        if jobs and not self.json_lines:
            self.done({}, f"{len(jobs)} of {of} already exist, skipped")

    def tell_plan(self, decoder: PixelDecoder, rows: int, columns: int, job: Job) -> None:
        """Say how an image would be decoded of a latent of so many rows and columns of cells, and what that would take.

        Raises:
            ValueError: it does not fit.
        """
        from pixdec.inference.sizes import Frame

        side = decoder.space.factor * decoder.scale
        plan = decoder.plan(*Frame.of(rows, columns, side, decoder.network.patch).whole)
        if not self.json_lines:
            print(f"{job.source}:", *plan.lines(), sep="\n  ", flush=True)
            return
        figures = {**asdict(plan), "dtype": str(plan.dtype).removeprefix("torch."), "how": plan.how}
        figures |= {"peak": plan.peak, "total": plan.total}
        self.done({"input": str(job.source), "output": str(job.target), "plan": figures}, "")

    @property
    def exit_code(self) -> int:
        return 2 if self.failures else 0


def progress(total: int, unit: str) -> tqdm[None]:
    """A progress bar on stderr if that is a terminal; otherwise one that shows nothing."""
    from tqdm import tqdm

    return cast("tqdm[None]", tqdm(total=total, unit=unit, disable=not sys.stderr.isatty(), leave=False))


def in_steps(bar: tqdm[None]) -> Callable[[int], None]:
    """Moves a bar over inputs by one step, of so many that each input takes."""
    inputs = bar.total or 0

    def step(of: int) -> None:
        bar.total = inputs * of
        bar.update()

    return step


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Rows of cells, the columns aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def tell(message: str) -> None:
    """One line on stderr, above a progress bar if there is one."""
    _tqdm_write(f"pixdec: {message}", to_stdout=False)


def explained(error: Exception) -> str:
    """What an error means for the person, on one line; an argument of Python's is named as the option that it is.

    Raises:
        Exception: the error itself, if it is none that is expected and `PIXDEC_TRACEBACK` is set.
    """
    from pixdec.devices import is_out_of_memory

    if is_out_of_memory(error) and not isinstance(error, ValueError):
        return f"out of memory ({first_line_of(error)}); try --memory 4GB or less, a smaller --tile, or a smaller image"
    if not isinstance(error, ValueError | OSError):
        if os.environ.get(TRACEBACK):
            raise error
        return f"unexpected {type(error).__name__}: {first_line_of(error)}; {TRACEBACK}=1 shows where it comes from"
    return _ARGUMENT.sub(_as_option, one_line(error))


def _as_option(found: re.Match[str]) -> str:
    name, value = found.groups()
    return f"--{name.replace('_', '-')} {value.strip(chr(39) + chr(34)) or value}"


def _tqdm_write(line: str, *, to_stdout: bool) -> None:
    stream = sys.stdout if to_stdout else sys.stderr
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
