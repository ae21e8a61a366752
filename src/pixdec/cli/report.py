"""What a verb says: progress and results to a terminal, JSON to machines, nothing to a pipe, failures to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pixdec.io.files import reason_of

if TYPE_CHECKING:
    from tqdm import tqdm


class Report:
    """The outcome of a run over many inputs: a bad one is one line on stderr, and the rest is still done.

    With `json_lines` every input gives one JSON object on stdout: the record of `done`, or {"input", "error"}.
    """

    def __init__(self, *, json_lines: bool) -> None:
        self.json_lines = json_lines
        self.failures = 0

    @contextmanager
    def attempt(self, source: str | Path) -> Generator[None]:
        """A ValueError or OSError of the block is reported as a failure of `source`, and goes no further."""
        try:
            yield
        except BrokenPipeError:
            raise
        except (ValueError, OSError) as error:
            self.failures += 1
            message = one_line(error)
            tell(message if str(source) in message else f"{source}: {message}")
            if self.json_lines:
                print(json.dumps({"input": str(source), "error": message}), flush=True)

    def done(self, record: Mapping[str, object], summary: str) -> None:
        """One finished input: `record` for machines, `summary` for a terminal."""
        if self.json_lines:
            print(json.dumps(record), flush=True)
        elif sys.stdout.isatty():
            _tqdm_write(summary, to_stdout=True)

    @property
    def exit_code(self) -> int:
        return 2 if self.failures else 0


def progress(total: int, unit: str) -> tqdm[None]:
    """A progress bar on stderr if that is a terminal; otherwise one that shows nothing."""
    from tqdm import tqdm

    return cast("tqdm[None]", tqdm(total=total, unit=unit, disable=not sys.stderr.isatty(), leave=False))


def tell(message: str) -> None:
    """One line on stderr, above a progress bar if there is one."""
    _tqdm_write(f"pixdec: {message}", to_stdout=False)


def one_line(message: object) -> str:
    """An error, warning or text on one line. An OSError of the system reads "file: reason", without its number."""
    if isinstance(message, OSError) and message.strerror and message.filename is not None:
        return f"{message.filename}: {message.strerror}"
    return reason_of(message)


def _tqdm_write(line: str, *, to_stdout: bool) -> None:
    stream = sys.stdout if to_stdout else sys.stderr
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        print(line, file=stream)
