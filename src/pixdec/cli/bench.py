"""`pixdec bench`: time and memory of a decoder, beside what one would take instead."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pixdec.cli.options import Dtype, Flag, Output
from pixdec.cli.report import Report, one_line, progress, tell

if TYPE_CHECKING:
    from pixdec.bench.rows import Row

DEFAULT_BESIDE = ("vae:flux2", "vae:flux2+lanczos", "tiny+lanczos")


@dataclass(frozen=True)
class Bench:
    """Measure time and memory of decoding, beside VAE decoders and upscalers on the same device.

    Each method at each output size runs in a process of its own, so that its peak memory is its own, and one that runs
    out of memory is a row that says so. Random weights serve, for speed does not depend on them: nothing is downloaded.

    OUT gets bench.json, bench.md and bench.webp. The same command goes on where it was interrupted; with other sizes or
    methods, rows are added. Another machine, version or setting needs another folder.
    """

    output: Output
    """A folder: it is created."""
    model: str = "pixdec-nano"
    """A decoder, by a name that `pixdec models` lists or its file; random:v1 or random:v1.5 is a network of the
    released size with random weights, which needs no file."""
    sides: tuple[int, ...] = (256, 512)
    """Of the square outputs, in pixels: multiples of 64."""
    ours: tuple[Literal["plain", "eager", "compiled", "graphs"], ...] = ("plain", "eager")
    """plain is the same computation written as the original runs it (float32 weights under autocast, nothing shared
    between steps, no chunks, no tiles); eager is decode as it comes; compiled is that compiled; graphs is that with
    CUDA graphs."""
    beside: Annotated[tuple[str, ...], tyro.conf.arg(metavar="METHOD ...")] = DEFAULT_BESIDE
    """vae:flux1, vae:flux2, vae:sdxl (also with :tiled or :sliced) and tiny decode a latent of the output's size. With
    +lanczos, +real-esrgan, +spandrel:FILE or +upscaler:FOLDER (a diffusers pipeline) behind it they decode a small
    image, which is enlarged; an enlarger alone begins with such an image. Without any: nothing but --ours."""
    device: str | None = None
    """Such as cpu, cuda, cuda:1 or mps; without it the fastest there is."""
    dtype: Dtype | None = None
    """Precision of all methods; without it the model's on this device."""
    steps: int | None = None
    """Decoding steps; without it as many as the model is made for."""
    batch: int = 1
    """Images in a call. Sliced VAEs differ from whole ones only above 1."""
    runs: int = 5
    """Calls that count."""
    warmup: int = 2
    """Calls before them; the first is reported apart."""
    limit: float = 600.0
    """Seconds for one row, loading included. Runs that would not fit are left out; a row without any says so."""
    retry: Flag = False
    """Measure rows without figures again."""
    json: Flag = False
    """Print one JSON object for each row, and one at the end."""

    def run(self) -> int:
        from pixdec.bench.report import TABLE
        from pixdec.bench.run import bench
        from pixdec.bench.settings import BenchSettings

        settings = BenchSettings(
            model=self.model,
            sides=self.sides,
            ours=self.ours,
            beside=self.beside,
            device=self.device,
            dtype=self.dtype,
            steps=self.steps,
            batch=self.batch,
            runs=self.runs,
            warmup=self.warmup,
            limit=self.limit,
        )
        out, report = Path(self.output), Report(json_lines=self.json)
        with progress(len(list(settings.tasks())), "row") as bar:
            for row in bench(settings, out, command=self._command(), retry=self.retry):
                _write_page(out)
                bar.update(1)
                _tell(row, report)
        _draw(out)
        rows = _write_page(out)
        measured = sum(row.status == "ok" for row in rows)
        report.done(
            {"output": str(out / TABLE), "rows": len(rows), "measured": measured},
            f"{out / TABLE}  {len(rows)} rows, {measured} with figures",
        )
        return 0

    def _command(self) -> str:
        """The command as it would be typed, without what is a default or of no consequence."""
        given = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("output", "json", "retry") and getattr(self, field.name) != field.default
        }
        words = ["pixdec", "bench"]
        for name, value in given.items():
            words += [f"--{name}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]
        return shlex.join([*words, "-o", self.output])


def _tell(row: Row, report: Report) -> None:
    """A line for a row. That one cannot be measured is a result, but not one to overlook."""
    report.done(asdict(row), row.line())
    if row.status != "ok" and not report.json_lines:
        tell(row.line())


def _write_page(out: Path) -> Sequence[Row]:
    """OUT/bench.md of what OUT/bench.json holds: after every row, so that an interrupted bench can be read."""
    from pixdec.bench.plot import PICTURE
    from pixdec.bench.report import TABLE, markdown
    from pixdec.bench.rows import read_bench
    from pixdec.bench.run import FILE
    from pixdec.io.files import replacing

    found = read_bench(out / FILE)
    assert found is not None
    with replacing(out / TABLE) as temporary:
        temporary.write_text(markdown(found, PICTURE if (out / PICTURE).exists() else None), encoding="utf-8")
    return found.rows


def _draw(out: Path) -> None:
    """OUT/bench.webp; a note where there can be none."""
    from pixdec.bench.plot import PICTURE, draw
    from pixdec.bench.rows import read_bench
    from pixdec.bench.run import FILE

    found = read_bench(out / FILE)
    assert found is not None
    try:
        draw(found, out / PICTURE)
    except ImportError:
        tell("note: no picture, for matplotlib is missing: pip install 'pixdec[bench]', then the same command")
    except ValueError as error:
        tell(f"note: no picture: {one_line(error)}")
