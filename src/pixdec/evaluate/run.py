"""The evaluation of decoders: photographs are shrunk and encoded, every method enlarges the same latents, and the
results are measured against the photographs.

    lineup = open_lineup(["pixdec-nano", "pixdec-nano:1", "tiny+lanczos"])
    outcomes = list(evaluate(find_photographs("kodak", "out"), lineup, open_metrics(), "out"))
    write_report(tabulate("Kodak", outcomes, lineup, open_metrics()), "out")

`evaluate` yields as it goes, and keeps every row in OUT/rows.jsonl: called again, it goes on where it was.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from pixdec import __version__
from pixdec.evaluate.methods import Lineup, Method, Sample
from pixdec.evaluate.photographs import Photograph, is_cropped, prepare, sheet_names
from pixdec.evaluate.report import Column, Report
from pixdec.evaluate.rows import append_row, key_of, read_rows
from pixdec.evaluate.scores import Metrics
from pixdec.evaluate.sheets import save_sheet
from pixdec.io.files import reason_of, replacing
from pixdec.io.images import read_settings, to_pil

ROWS, FIGURES, TABLE, SHEETS = "rows.jsonl", "figures.json", "table.md", "sheets"  # in the output folder
SECONDS = Column("seconds ↓", 2)
# Of one image, and no reason not to go on with the next.
FAILURES = (ValueError, OSError, MemoryError, torch.OutOfMemoryError)


@dataclass(frozen=True)
class EvalSettings:
    """Of a run. seed: of the noise in the latent and of the decoders', the same for every image. sigma: the noise
    level that the latents are brought to. sheets: the first so many photographs get a sample sheet."""

    seed: int = 0
    sigma: float = 0.0
    sheets: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.sigma <= 1:
            raise ValueError(f"sigma {self.sigma}: expected a noise level from 0 to 1")
        if self.sheets < 0:
            raise ValueError(f"sheets {self.sheets}: expected 0 or more")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed {self.seed}: expected an integer of 64 bits")


@dataclass(frozen=True)
class Row:
    """The figures of one image by one method, "seconds" the last of them. `earlier`: an earlier run measured them."""

    image: str
    method: str
    figures: Mapping[str, float]
    cropped: bool
    earlier: bool


@dataclass(frozen=True)
class Broken:
    """An image that could not be used (`method` None), or that one method or metric failed on; the reason in a line."""

    image: str
    method: str | None
    reason: str


@torch.inference_mode()
def evaluate(
    photographs: Sequence[Photograph],
    lineup: Lineup,
    metrics: Metrics,
    out: str | Path,
    settings: EvalSettings | None = None,
) -> Iterator[Row | Broken]:
    """One row for each image and method, in this order; the folder `out` gets OUT/rows.jsonl and the sample sheets.

    A row is taken from the file if it was measured there with the same image, weights, steps, precision, kind of
    device, encoder, scale, sigma, seed, version of pixdec, and at least these metrics. A sheet that is missing or shows
    something else is made again, and with it the images on it.

    "seconds" is the time of one image from its latent to 8-bit pixels, enlarging included, encoding and measuring not.

    Raises:
        ValueError: OUT/rows.jsonl is not such a file.
        OSError: a file cannot be written.
    """
    settings, out = settings or EvalSettings(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    earlier = read_rows(out / ROWS)
    sheets = sheets_of(photographs, settings)
    for photograph in photographs:
        try:
            task = _task(photograph, lineup, metrics, settings, earlier, out, sheets.get(photograph.name))
        except FAILURES as error:
            yield Broken(photograph.name, None, _line(error))
            continue
        pictures: dict[str, Image.Image] = {}
        for method in lineup.methods:
            figures = task.known.get(method.name)
            if task.sample is not None and (figures is None or task.sheet is not None):
                try:
                    pictures[method.name], seconds = _enlarged(method, task.sample, settings.seed)
                    if figures is None:
                        low = to_pil(task.sample.low)[0]
                        measured = metrics.measure(pictures[method.name], task.sample.original, low, lineup.scale)
                        figures = {**measured, "seconds": seconds}
                except FAILURES as error:
                    yield Broken(photograph.name, method.name, _line(error))
                    continue
                if method.name not in task.known:
                    about = {"image": photograph.name, "method": method.name, "made_with": task.made_with[method.name]}
                    append_row(out / ROWS, task.keys[method.name], figures, about)
            assert figures is not None, "what is not known has a sample to be measured on"
            chosen = {name: figures[name] for name in (*metrics.names, "seconds")}
            yield Row(photograph.name, method.name, chosen, task.cropped, method.name in task.known)
        if task.sample is not None and task.sheet is not None and len(pictures) == len(lineup.methods):
            save_sheet(task.sample.original, pictures, task.sheet, settings=task.shown)


def sheets_of(photographs: Sequence[Photograph], settings: EvalSettings) -> dict[str, str]:
    """The photographs that get a sample sheet, and its path below the output folder."""
    names = sheet_names(photographs)
    return {each.name: f"{SHEETS}/{names[each.name]}" for each in photographs[: settings.sheets]}


@dataclass(frozen=True)
class _Task:
    """What is to do for one photograph. By method: `made_with`, all that its image depends on; `keys`, its digest;
    `known`, figures of earlier runs. `sheet`: the sheet to make, showing `shown`. `sample`: None if there is nothing
    to do."""

    made_with: Mapping[str, Mapping[str, object]]
    keys: Mapping[str, str]
    known: Mapping[str, Mapping[str, float]]
    cropped: bool
    sheet: Path | None
    shown: Mapping[str, object]
    sample: Sample | None


def _task(
    photograph: Photograph,
    lineup: Lineup,
    metrics: Metrics,
    settings: EvalSettings,
    earlier: Mapping[str, Mapping[str, float]],
    out: Path,
    sheet_name: str | None,
) -> _Task:
    cropped = is_cropped(photograph.path, lineup.multiple)
    shared: dict[str, object] = {
        "pixdec": __version__,
        "photograph": hashlib.sha256(photograph.path.read_bytes()).hexdigest(),
        "encoder": lineup.encoder.digest,
        "space": lineup.space.name,
        "scale": lineup.scale,
        "sigma": settings.sigma,
        "seed": settings.seed,
        "device": lineup.device.type,
    }
    made_with = {method.name: {**shared, **method.settings} for method in lineup.methods}
    keys = {name: key_of(each) for name, each in made_with.items()}
    wanted = {*metrics.names, "seconds"}
    known = {name: earlier[key] for name, key in keys.items() if wanted <= set(earlier.get(key, {}))}
    shown = {"pixdec": __version__, "verb": "eval", "columns": ["original", *keys], "keys": list(keys.values())}
    sheet = None if sheet_name is None else out / sheet_name
    if sheet is not None and _is_current(sheet, shown):
        sheet = None
    needed = sheet is not None or len(known) < len(keys)
    sample = prepare(photograph.path, lineup, sigma=settings.sigma, seed=settings.seed) if needed else None
    return _Task(made_with, keys, known, cropped, sheet, shown, sample)


def tabulate(
    title: str,
    outcomes: Sequence[Row | Broken],
    lineup: Lineup,
    metrics: Metrics,
    settings: EvalSettings | None = None,
    facts: Mapping[str, str] | None = None,
) -> Report:
    """The report of a run: the images that all methods have figures of, so that their means are of the same images.

    `facts` come before those that are known here.

    Raises:
        ValueError: there is no such image.
    """
    settings = settings or EvalSettings()
    by_image: dict[str, dict[str, Row]] = {}
    for outcome in outcomes:
        found = by_image.setdefault(outcome.image, {})
        if isinstance(outcome, Row):
            found[outcome.method] = outcome
    names = [method.name for method in lineup.methods]
    images = [image for image, found in by_image.items() if len(found) == len(names)]
    if not images:
        raise ValueError(f"none of {len(by_image)} images has figures of all methods, so there is no table")
    cropped = sum(by_image[image][names[0]].cropped for image in images)
    left_out = [image for image in by_image if image not in images]
    rows = {name: [by_image[image][name].figures for image in images] for name in names}
    known = {**(facts or {}), **_facts(lineup, settings, metrics), "cropped": _cropped(cropped, len(images), lineup)}
    if left_out:
        known["left out"] = f"{len(left_out)} images that failed: {', '.join(left_out)}"
    return Report(title, images, rows, known, {**metrics.columns, "seconds": SECONDS})


def write_report(report: Report, out: str | Path, sheets: Mapping[str, str] | None = None) -> tuple[Path, Path]:
    """Write OUT/table.md and OUT/figures.json, each whole or not at all.

    `sheets` of `sheets_of`: those that are there, of images in the report, are shown below the tables.

    Raises:
        OSError: one cannot be written.
    """
    out = Path(out)
    shown = {image: sheet for image, sheet in (sheets or {}).items() if image in report.images}
    lines = [f"![{image}](<{sheet}>)" for image, sheet in shown.items() if (out / sheet).is_file()]
    text = report.markdown()
    if lines:
        order = "The original first, then the methods in the order of the table."
        text += f"\n## Sheets\n\nThe most detailed piece of a photograph, at 100 %. {order}\n\n"
        text += "\n".join(lines) + "\n"
    written = out / TABLE, out / FIGURES
    for path, content in zip(written, (text, report.to_json()), strict=True):
        with replacing(path) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return written


def _enlarged(method: Method, sample: Sample, seed: int) -> tuple[Image.Image, float]:
    start = time.perf_counter()
    picture = to_pil(method.enlarge(sample, seed))[0]  # which waits for the device
    return picture, time.perf_counter() - start


def _is_current(sheet: Path, shown: Mapping[str, object]) -> bool:
    try:
        return sheet.exists() and read_settings(sheet) == shown
    except ValueError:
        return False


def _facts(lineup: Lineup, settings: EvalSettings, metrics: Metrics) -> dict[str, str]:
    device = lineup.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    facts = {
        "latents": (
            f"bicubic antialiased ÷{lineup.scale}, encoded once by {lineup.encoder.label} ({lineup.space.name}), "
            f"noise level {settings.sigma:g}; all methods get the same"
        ),
        "seed": str(settings.seed),
        "machine": f"{name}{threads}, PyTorch {torch.__version__}, pixdec {__version__}",
        "seconds": "for one image, from its latent; the first image warms up",
    }
    if metrics.absent:
        facts["not measured"] = "; ".join(metrics.absent)
    if "consistency" in metrics.own:
        facts["consistency"] = "against the small image that was encoded"
    return facts


def _cropped(count: int, total: int, lineup: Lineup) -> str:
    return f"{count} of {total} images, in the middle, to sides that are multiples of {lineup.multiple}"


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return reason_of(error)


__all__ = [
    "FIGURES",
    "SHEETS",
    "TABLE",
    "Broken",
    "EvalSettings",
    "Row",
    "evaluate",
    "sheets_of",
    "tabulate",
    "write_report",
]
