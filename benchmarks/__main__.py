"""`python -m benchmarks`: bad input is one line on stderr and exit code 2."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

from benchmarks.speed import Settings, measure_all


def measure(
    settings: Annotated[Settings, tyro.conf.arg(name="")],
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    retry: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Measure time and peak memory of decoding, ours beside what one would take instead.

    Each row runs in a process of its own. The same command goes on where it was interrupted.

    Args:
        settings: what is measured.
        output: OUTPUT.json and OUTPUT.md are written after every row.
        retry: measure rows without figures again.
    """
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    for row in measure_all(settings, output, command=command, retry=retry):
        print(row.line(), flush=True)


if __name__ == "__main__":
    try:
        tyro.cli(measure, prog="python -m benchmarks")
    except (ValueError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        sys.exit(2)
