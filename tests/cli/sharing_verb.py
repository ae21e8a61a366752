"""What the processes of test_processes.py do: `python sharing_verb.py FOLDER`, started twice as torchrun would. Each
part is a small verb, which writes the negative of every image; its exit codes are the last line on stdout."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from pixdec.cli.plan import Job, plan
from pixdec.cli.processes import Process
from pixdec.cli.report import Report
from pixdec.io.images import READABLE, WRITABLE, image_size, read_image, save_image, to_pil, to_tensor


@dataclass(frozen=True)
class Piece:
    job: Job
    width: int
    height: int


def find(folder: Path, output: Path, process: Process, report: Report) -> list[Piece]:
    jobs = plan([str(folder)], str(output), what="images", readable=READABLE, writable=WRITABLE, suffix=".png")
    pieces = []
    for job in jobs:
        with process.attempt(report, job.source):
            pieces.append(Piece(job, *image_size(job.source)))
    return pieces


def make(pieces: Sequence[Piece], process: Process, report: Report, part: str) -> None:
    team = 2 if part == "team" else 1
    context = process.context("cpu", team)
    if part == "broken" and process.rank == 1:
        raise OSError("no room on the disk")
    for piece in pieces:
        with process.attempt(report, piece.job.source, team):
            image = to_tensor(read_image(piece.job.source))
            if context is not None:  # each has the half of it
                band = image.chunk(2, 2)[process.rank]
                image = context.gather(band, 2, [half.shape[2] for half in image.chunk(2, 2)])
            if process.leads(team):
                piece.job.target.parent.mkdir(parents=True, exist_ok=True)
                save_image(to_pil(-image)[0], piece.job.target, settings={})
                report.done({"part": part, "input": piece.job.source.name}, "")


def verb(part: str, folder: Path, process: Process) -> int:
    report = Report(json_lines=True)
    source = folder / {"other": f"other{process.rank}", "none": "none"}.get(part, "pictures")
    output = folder / ("pictures" if part == "in place" else part)
    return process.carry_out(
        report,
        partial(find, source, output, process, report),
        lambda piece: piece.width * piece.height,
        partial(make, process=process, report=report, part=part),
        team=2 if part == "team" else 1,
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = Process.here()
    parts = ("none", "other", "broken", "team", "in place")
    print(json.dumps({part: verb(part, Path(sys.argv[1]), here) for part in parts}))
