"""Which input goes to which output: settled whole, and refused whole, before any work."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pixdec.io.files import files_below


@dataclass(frozen=True)
class Job:
    """One file to read and one to write."""

    source: Path
    target: Path


@dataclass(frozen=True)
class Kinds:
    """Which files a verb reads, by their suffixes and as messages name them ("images"), and which it writes: one that
    is named has a suffix of `writable`, those in a folder have `suffix`."""

    what: str
    readable: Collection[str]
    writable: Collection[str]
    suffix: str


def plan(inputs: Sequence[str], output: str, kinds: Kinds) -> list[Job]:
    """Pair inputs and outputs.

    One file and an output with a suffix of `writable`: that file. Otherwise `output` is a folder, and an input file
    NAME.xyz becomes NAME`suffix` in it; an input folder gives every file below it with a suffix of `readable`, under
    the same names of folders (hidden ones, and what lies below `output`, are left out). Input files need not exist:
    reading them tells.

    Raises:
        ValueError: no input, a folder without such files, an output of another suffix, several inputs and one output
            file, two inputs for one output, an output that is an input.
    """
    if not inputs:
        raise ValueError(f"no input; name {kinds.what}, or folders of {kinds.what}")
    names_folder = output.endswith(("/", os.sep)) or Path(output).is_dir()
    if len(inputs) == 1 and not Path(inputs[0]).is_dir() and not names_folder and Path(output).suffix:
        if Path(output).suffix.lower() not in kinds.writable:
            suffixes = ", ".join(kinds.writable)
            raise ValueError(f"{output}: expected a suffix of {suffixes}; if it is a folder, end it with /")
        jobs = [Job(Path(inputs[0]), Path(output))]
    else:
        if not names_folder and (Path(output).suffix.lower() in kinds.writable or Path(output).is_file()):
            raise ValueError(
                f"{output}: it names one file, expected a folder for several {kinds.what} or for a folder of them"
            )
        jobs = [
            Job(source, Path(output) / name.with_name(name.stem + kinds.suffix))
            for given in inputs
            for source, name in _files(Path(given), Path(output), kinds)
        ]
    check_targets(jobs)
    return jobs


def check_targets(jobs: Iterable[Job]) -> None:
    """Refuse jobs that would overwrite each other's output, or an input.

    Raises:
        ValueError: names the first such output and its inputs.
    """
    jobs = list(jobs)
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    owners: dict[str, Path] = {}
    for job in jobs:
        target = os.path.realpath(job.target)
        if target in sources:
            raise ValueError(f"{job.target}: would overwrite the input {sources[target]}; choose another output")
        if target in owners:
            raise ValueError(f"{job.target}: both {owners[target]} and {job.source} would be written there; rename one")
        owners[target] = job.source


def _files(given: Path, output: Path, kinds: Kinds) -> list[tuple[Path, Path]]:
    """The files an input stands for, each with its name relative to the output folder."""
    if not given.is_dir():
        return [(given, Path(given.name))]
    earlier = output.resolve() if given.resolve() in output.resolve().parents else None  # what other runs wrote
    every = [name for name in files_below(given) if earlier not in (given / name).resolve().parents]
    names = [name for name in every if name.suffix.lower() in kinds.readable]
    if not names:
        raise ValueError(f"{given}: no {kinds.what} in this folder; looked for {', '.join(sorted(kinds.readable))}")
    others = Counter(name.suffix.lower() or "without a suffix" for name in sorted({*every} - {*names}))
    if others:
        left_out = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common())
        warnings.warn(f"{given}: no {kinds.what}, left out: {left_out}", UserWarning, stacklevel=2)
    return [(given / name, name) for name in names]
