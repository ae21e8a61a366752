"""report.html: everything that an evaluation found, on one page that opens from disk and needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from PIL import Image

from pixdec.devices import environment
from pixdec.evaluate.judge.rates import notes, rates_table, summarize
from pixdec.evaluate.metrics.table import TABLE_1
from pixdec.evaluate.report import plots
from pixdec.evaluate.report.sheets import save_sheet
from pixdec.evaluate.report.summary import SUMMARY, TABLE, Summary
from pixdec.evaluate.report.tables import Column, Table, mean_cells, sets_table
from pixdec.evaluate.results import Row
from pixdec.evaluate.run import CROPS
from pixdec.io.files import write_whole
from pixdec.io.images import read_image

PAGE, SHEETS, BENCH, JUDGE = "report.html", "sheets", "bench.json", "judge.jsonl"  # in the output folder
WORST = 10
SOURCE = "arXiv 2605.23902v1, Tables 1 to 4; latency: one GB200, or the device that is said"
# The paper's column: its heading, and ours that may stand beside it, "" without any; NIQE is ours or pyiqa's.
PAPER_COLUMNS = {
    **TABLE_1,
    "psnr": ("PSNR ↑", "psnr"),
    "ssim": ("SSIM ↑", "ssim_same"),
    "lpips": ("LPIPS ↓", "pyiqa:lpips-vgg"),
    "ms_eager": ("ms eager", ""),
    "ms_compile": ("ms compiled", ""),
}


def write_report(summary: Summary, out: str | Path, sheets: int = 8) -> Path:
    """Write OUT/report.html, summary.json and table.md, each whole or not at all, and the sample sheets of the first
    so many images. The same figures and crops give the same page.

    A judge's rounds (judge.jsonl) and times (bench.json, of `python -m benchmarks -o OUT/bench`) in the folder are
    shown too.

    Raises:
        OSError: one cannot be written.
    """
    out = Path(out)
    shown = {image: _save_sheet(image, summary, out) for image in summary.images[:sheets]}
    text = summary.markdown()
    if found := "\n".join(f"![{image}](<{sheet}>)" for image, sheet in shown.items() if sheet):
        order = "The original first, then the methods in the order of the table."
        text += f"\n## Sheets\n\nThe most detailed piece of a photograph, at 100 %. {order}\n\n{found}\n"
    for name, content in ((SUMMARY, summary.to_json()), (TABLE, text), (PAGE, _page(summary, out, sheets))):
        write_whole(out / name, content)
    return out / PAGE


def _save_sheet(image: str, summary: Summary, out: Path) -> str | None:
    """The sheet's path below the folder; None if there are no crops."""
    crops = {label: out / CROPS / f"{key}.webp" for label, key in _crops(image, summary).items()}
    pieces = {label: read_image(path) for label, path in crops.items() if path.is_file()}
    if not pieces:
        return None
    stem = Path(image).with_suffix("").as_posix()
    stems = [Path(name).with_suffix("").as_posix().casefold() for name in summary.images]
    name = f"{SHEETS}/{stem if stems.count(stem.casefold()) == 1 else image}.webp"
    save_sheet(pieces, out / name, settings={"columns": list(pieces)})
    return name


def _crops(image: str, summary: Summary) -> dict[str, str]:
    """label -> key of its crop: the original first, then the methods."""
    rows = [row for found in summary.by_method.values() if (row := found.get(image)) is not None]
    original = next((row.original for row in rows if row.original), None)
    return {**({"original": original} if original else {}), **{row.method: row.key for row in rows}}


def _page(summary: Summary, out: Path, sheets: int) -> str:
    """All of it, by the template `page.html`."""
    embedded = dict[str, tuple[str, tuple[int, int], str]]()  # key -> class, size, bytes: each crop is there once

    def embed(key: str | None) -> str | None:
        """The class of a crop; None if it is not there."""
        path = out / CROPS / f"{key}.webp"
        if key is None or not path.is_file():
            return None
        if key not in embedded:
            with Image.open(path) as crop:
                embedded[key] = f"k{key[:10]}", crop.size, base64.b64encode(path.read_bytes()).decode()
        return embedded[key][0]

    dividers = list[tuple[str, dict[str, str], str, str]]()
    for image in summary.images[:sheets]:
        crops = {label: name for label, key in _crops(image, summary).items() if (name := embed(key))}
        if labels := list(crops):
            dividers.append((image, crops, labels[min(1, len(labels) - 1)], labels[-1 if len(labels) > 2 else 0]))
    worst = list[tuple[str, list[tuple[str, list[str]]]]]()
    for metric, column in summary.columns.items():
        if rows := _worst(summary, metric):
            shown = [[name for key in (row.original, row.key) if (name := embed(key))] for row in rows]
            captions = [f"{row.image}: {column.text(row.figures[metric])}" for row in rows]
            worst.append((column.title, list(zip(captions, shown, strict=True))))
    # Without the line breaks of the template.
    template = Environment(autoescape=True).from_string("".join(map(str.strip, _asset("page.html").splitlines())))
    return template.render(
        summary=summary,
        css=_asset("page.css"),
        js=_asset("page.js"),
        folders=summary.folder_table(),
        paper=_paper(summary),
        source=SOURCE,
        plots=_plots(summary),
        sets=sets_table(summary.sets),
        judges=_judges(out / JUDGE),
        bench=_bench(out / BENCH),
        dividers=dividers,
        worst=worst,
        most=WORST,
        failures=Table(
            ["image", "method", "metric", "reason"],
            [[value or "all" for value in each.values()] for each in summary.failures()],
        ),
        settings=_settings(summary),
        embedded=list(embedded.values()),
    )


def _worst(summary: Summary, metric: str) -> list[Row]:
    """The rows on which the first method scores worst; none of times, or where there is no choice."""
    direction, rows = summary.columns[metric].title, summary.by_method.get(summary.first, {}).values()
    scored = [row for row in rows if not math.isnan(row.figures.get(metric, math.nan))]

    def goodness(row: Row) -> float:
        value = row.figures[metric]
        return value if "↑" in direction else -abs(value) if "→ 0" in direction else -value

    few = metric == "seconds" or len(scored) < 2
    return [] if few else sorted(scored, key=lambda row: (goodness(row), row.image))[:WORST]


def _paper(summary: Summary) -> Table | None:
    """The paper's rows below ours; None without a column in common."""
    means, columns = summary.means, summary.columns
    measured = {own for each in means.values() for own in each}
    ours = [own if own in measured or own != "pyiqa:niqe" else "niqe" for _, own in PAPER_COLUMNS.values()]
    if measured.isdisjoint(ours):
        return None
    rows = list[list[str]]()
    for method, each in means.items():
        n, *cells = mean_cells([each.get(own) for own in ours], [columns.get(own, Column("")) for own in ours])
        rows.append([method, f"here, n {n}", *cells])
    rows += [[name, "", f"not run: {why}"] for name, why in summary.missing.items()]
    published = [
        [row["method"], f"Table {row['table']}: {row['group']}", *(row[name] or "–" for name in PAPER_COLUMNS)]
        for row in _published("published.csv")
    ]
    head = ["method", "published in", *(heading for heading, _ in PAPER_COLUMNS.values())]
    return Table(head, rows + published, grey=len(rows))


def _plots(summary: Summary) -> list[str]:
    made = list[str]()
    stops = {method: method.rpartition(" @") for method in summary.means if " @" in method}
    for name, column in summary.columns.items():
        means = {method: each[name] for method, each in summary.means.items() if name in each}
        if len(means) > 1:
            rows = [(method, mean.mean, *mean.interval) for method, mean in means.items()]
            made.append(plots.intervals(column.title, rows))
        if len({stop for _, _, stop in stops.values()}) > 1:
            series = dict[str, list[tuple[float, float]]]()
            for method, (plain, _, stop) in stops.items():
                if method in means:
                    series.setdefault(plain, []).append((float(stop), means[method].mean))
            made.append(plots.lines(f"{column.title} over the step of the stop", dict(sorted(series.items())), "step"))
    return list(filter(None, made))


@dataclass(frozen=True)
class Extra:
    """What another command left in the folder; or only a note why it cannot be shown."""

    notes: Sequence[str] = ()
    table: Table | None = None
    plots: Sequence[str] = ()


def _judges(path: Path) -> Extra | None:
    if not path.is_file():
        return None
    try:
        found = summarize(path)
    except (ValueError, OSError) as error:
        return Extra([str(error)])
    points = list[tuple[str, float, float, float]]()
    for row in found["rows"]:
        rate, low, high = (math.nan if row[name] is None else float(row[name]) for name in ("win_rate", "low", "high"))
        points.append((f"{row['ours']} over {row['other']} ({row['view']}, {row['judge']})", rate, low, high))
    plot = plots.intervals("win rate, with its 95 % interval", points, mark=0.5)
    return Extra(notes(found), rates_table(found), [plot])


def _bench(path: Path) -> Extra | None:
    if not path.is_file():
        return None
    try:
        rows = [row for row in json.loads(path.read_text())["rows"] if row["status"] == "ok"]
        times = {(row["method"], row["side"]): statistics.median(row["seconds"]) for row in rows}
        peaks = {(row["method"], row["side"]): row["peak"] / 1e9 for row in rows}
    except (ValueError, KeyError, TypeError) as error:
        return Extra([f"{path}: no times of python -m benchmarks ({error!r})"])
    cells = [[name, f"{side}²", f"{times[name, side]:.3f}", f"{peaks[name, side]:.2f}"] for name, side in times]
    made = list[str]()
    for title, own, unit, factor in (("seconds", times, "ms", 1000.0), ("peak memory, GB", peaks, "gb", 1.0)):
        series = dict[str, list[tuple[float, float]]]()
        for (name, side), value in own.items():
            series.setdefault(name, []).append((side * side / 1e6, value))
        for row in _published("published_latency.csv"):
            if row[unit] and row["mode"] == "eager":
                point = int(row["side"]) ** 2 / 1e6, float(row[unit]) / factor
                series.setdefault(f"{row['method']} (the paper)", []).append(point)
        made.append(plots.lines(title, series, "megapixels", log=True))
    return Extra((), Table(["method", "output", "seconds", "peak GB"], cells), made)


def _settings(summary: Summary) -> list[Table]:
    settings = {name: json.dumps(summary.settings.get(name), ensure_ascii=False) for name in summary.methods}
    metrics = [[column.title, column.source] for column in summary.columns.values()]
    metrics += [[name, f"not measured: {reason}"] for name, reason in summary.absent.items()]
    return [
        Table(["method", "licence", "settings"], [[*each, settings[each[0]]] for each in summary.methods.items()]),
        Table(["metric", "code, weights, licence"], metrics),
        Table(["", "version"], [[name, str(value)] for name, value in environment().items()]),
    ]


def _asset(name: str) -> str:
    return resources.files("pixdec.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _published(name: str) -> list[Mapping[str, Any]]:
    return list(csv.DictReader(_asset(name).splitlines()))
