"""The command `pixdec`: parse, run one verb, and turn what went wrong into one line and an exit code.

Exit codes: 0 all done, 2 bad input or arguments (each named in one line on stderr), 130 interrupted. Anything else is a
bug and shows its traceback.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Protocol, TextIO

import tyro

from pixdec import __version__
from pixdec.cli.convert import Convert
from pixdec.cli.data import Data
from pixdec.cli.decode import Decode
from pixdec.cli.encode import Encode
from pixdec.cli.env import Env
from pixdec.cli.eval import Eval
from pixdec.cli.generate import Generate
from pixdec.cli.inspect import Inspect
from pixdec.cli.models import Models
from pixdec.cli.report import one_line, tell
from pixdec.cli.train import Train
from pixdec.cli.train import parse as parse_train
from pixdec.cli.upscale import Upscale


class Verb(Protocol):
    """A verb: its options as a frozen dataclass, and what it does. Importing one imports nothing heavy."""

    def run(self) -> int:
        """Do it; return the exit code. ValueError and OSError stand for bad input."""
        ...


VERBS: dict[str, Callable[..., Verb]] = {
    "upscale": Upscale,
    "decode": Decode,
    "encode": Encode,
    "eval": Eval,
    "generate": Generate,
    "models": Models,
    "convert": Convert,
    "inspect": Inspect,
    "data": Data,
    "train": Train,
    "env": Env,
}
DESCRIPTION = "Decode latents into images four times larger with a pixel-diffusion decoder."


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command with these arguments (default: the process's) and return its exit code.

    `--help` and bad arguments raise SystemExit, as argument parsers do.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"pixdec {__version__}")
        return 0
    try:
        verb = _parse(arguments)
    except ValueError as error:
        tell(one_line(error))
        return 2
    if not sys.stderr.isatty():  # before it is imported: downloads draw progress bars into pipes too
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)  # those meant for the person, each text once
        warnings.showwarning = _show_warning
        try:
            return verb.run()
        except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except (ValueError, OSError) as error:
            tell(one_line(error))
            return 2
        except KeyboardInterrupt:
            tell("interrupted")
            return 130


def _parse(arguments: list[str]) -> Verb:
    """Arguments → verb. tyro explains a mistake in a box of many lines; it becomes one."""
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            if arguments[:1] == ["train"] and arguments[1:2] not in ([], ["--help"], ["-h"]):
                return parse_train(arguments[1:])
            return tyro.extras.subcommand_cli_from_dict(
                VERBS, prog="pixdec", description=DESCRIPTION, args=arguments, config=(tyro.conf.DisallowNone,)
            )
    except SystemExit as stop:
        if stop.code:
            verb = f" {arguments[0]}" if arguments and arguments[0] in VERBS else ""
            tell(f"{_gist(box.getvalue())}; see pixdec{verb} --help")
        raise


def _gist(box: str) -> str:
    """What a box says: its text down to the first rule or empty row, without the help quoted there, indented."""
    rows = [row.removeprefix("│ ").rstrip(" │") for row in box.splitlines()[1:]]
    said = list(itertools.takewhile(lambda row: row and row[0] not in "─╰", rows))
    return " ".join(" ".join(row for row in said if not row.startswith(" " * 8)).split()).rstrip(".")


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    tell(f"note: {one_line(message)}")


__all__ = ["main"]
