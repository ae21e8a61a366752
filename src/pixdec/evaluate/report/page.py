"""report.html: everything that an evaluation found, on one page that opens from disk and needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any, cast

from PIL import Image

from pixdec.devices import environment
from pixdec.evaluate.judge.table import summarize
from pixdec.evaluate.report import plots
from pixdec.evaluate.report.sheets import save_sheet
from pixdec.evaluate.report.tables import Column, Summary, write_tables
from pixdec.evaluate.results import Row
from pixdec.evaluate.run import CROPS
from pixdec.evaluate.statistics import Mean
from pixdec.io.files import replacing
from pixdec.io.images import read_image

PAGE, SHEETS, BENCH, JUDGE = "report.html", "sheets", "bench.json", "judge.jsonl"  # in the output folder
WORST = 10
SOURCE = "arXiv 2605.23902v1, Tables 1 to 4; latency: one GB200, or the device that is said"
# The paper's column: its heading, and ours that may stand beside it, the first that was measured.
PAPER_COLUMNS = {
    "musiq_paq2piq": ("MUSIQ-PaQ ↑", ("pyiqa:musiq-paq2piq",)),
    "niqe": ("NIQE ↓", ("pyiqa:niqe", "niqe")),
    "deqa": ("DeQA ↑", ("deqa",)),
    "maniqa": ("MANIQA ↑", ("pyiqa:maniqa",)),
    "qalign": ("Q-Align ↑", ("pyiqa:qalign",)),
    "unipercept_iaa": ("Uni-IAA ↑", ("unipercept-iaa",)),
    "unipercept_iqa": ("Uni-IQA ↑", ("unipercept-iqa",)),
    "vq_r1": ("VQ-R1 ↑", ("vq-r1",)),
    "psnr": ("PSNR ↑", ("psnr",)),
    "ssim": ("SSIM ↑", ("ssim_same",)),
    "lpips": ("LPIPS ↓", ("pyiqa:lpips-vgg",)),
    "ms_eager": ("ms eager", ()),
    "ms_compile": ("ms compiled", ()),
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
    write_tables(summary, out, {image: sheet for image, sheet in shown.items() if sheet})
    text = _Page(summary, out, sheets).text()
    with replacing(out / PAGE) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return out / PAGE


def _save_sheet(image: str, summary: Summary, out: Path) -> str | None:
    """The sheet's path below the folder; None if there are no crops."""
    pieces = dict[str, Image.Image]()
    for label, key in _crops(image, summary).items():
        path = out / CROPS / f"{key}.webp"
        if path.is_file():
            pieces[label] = read_image(path)
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


class _Page:
    def __init__(self, summary: Summary, out: Path, sheets: int):
        self.summary, self.out, self.sheets = summary, out, sheets
        self.embedded = dict[str, tuple[str, tuple[int, int]]]()  # key -> class, size

    def text(self) -> str:
        summary = self.summary
        sections = [
            ("Figures", self._figures()),
            ("Beside the paper", self._paper()),
            ("Plots", self._plots()),
            ("Sets of images", self._sets()),
            ("Judges", self._judge()),
            ("Latency and memory", self._bench()),
            ("At 100 %", self._dividers()),
            (f"Worst {WORST} images for each metric", self._worst()),
            ("Failures", self._failures()),
            ("Settings, versions, licences", self._settings()),
        ]
        body = "".join(f"<section><h2>{name}</h2>{text}</section>" for name, text in sections if text)
        facts = "".join(f"<li><b>{escape(name)}</b>: {escape(fact)}</li>" for name, fact in summary.facts.items())
        crops = "".join(
            f".{name}{{background-image:url(data:image/webp;base64,{self._data(key)});width:{size[0]}px;height:{size[1]}px}}"
            for key, (name, size) in self.embedded.items()
        )
        title = escape(summary.title)
        return (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width">'
            f"<style>{_asset('page.css')}{crops}</style><h1>{title}</h1><ul>{facts}</ul>{body}"
            f"<script>{_asset('page.js')}</script></html>\n"
        )

    def _figures(self) -> str:
        summary = self.summary
        text = _means_table(summary.means, summary.columns, summary.missing)
        note = (
            "<p>Mean ± 95 % interval of the mean (Student's t), and below it the number n of images that it is of.</p>"
        )
        differences = summary.differences()
        if differences and len(summary.images) > 1:
            first = escape(next(iter(summary.by_method)))
            note += text
            text = f"<h3>{first} less the others, image by image</h3>{_means_table(differences, summary.columns)}"
        return note + text

    def _paper(self) -> str:
        means = self.summary.means
        measured = {
            name: next((own for own in owns if any(own in each for each in means.values())), None)
            for name, (_, owns) in PAPER_COLUMNS.items()
        }
        if not any(measured.values()):
            return ""
        rows = list[str]()
        for method, each in means.items():
            cells = [_mean(each.get(own or ""), self.summary.columns.get(own or "")) for own in measured.values()]
            rows.append(f"<tr><th>{escape(method)}</th>{''.join(cells)}</tr>")
        rows += [
            f'<tr><th>{escape(name)}</th><td colspan="9">not run: {escape(why)}</td></tr>'
            for name, why in self.summary.missing.items()
        ]
        group = None
        for row in _published("published.csv"):
            heading = f"Table {row['table']}: {row['group']}"
            if heading != group:
                group = heading
                rows.append(f'<tr class="p"><th colspan="{len(PAPER_COLUMNS) + 1}">{escape(heading)}</th></tr>')
            cells = "".join(f"<td>{escape(row[name]) or '–'}</td>" for name in PAPER_COLUMNS)
            rows.append(f'<tr class="p"><th>{escape(row["method"])}</th>{cells}</tr>')
        head = "".join(f"<th>{heading}</th>" for heading, _ in PAPER_COLUMNS.values())
        return (
            f"<p>Ours in black, the paper's in grey ({SOURCE}): its images come from generators, "
            "so compare only like with like.</p>"
            f'<div class="w"><table><tr><th>method</th>{head}</tr>{"".join(rows)}</table></div>'
        )

    def _plots(self) -> str:
        summary = self.summary
        made = list[str]()
        for name, column in summary.columns.items():
            rows = [
                (method, each[name].mean, *each[name].interval)
                for method, each in summary.means.items()
                if name in each
            ]
            if len(rows) > 1:
                made.append(plots.intervals(column.title, rows))
        stops = {method: method.rpartition(" @") for method in summary.means if " @" in method}
        if len({stop for _, _, stop in stops.values()}) > 1:
            for name, column in summary.columns.items():
                series = dict[str, list[tuple[float, float]]]()
                for method, (plain, _, stop) in stops.items():
                    if name in summary.means[method]:
                        series.setdefault(plain, []).append((float(stop), summary.means[method][name].mean))
                made.append(plots.lines(f"{column.title} over the step of the stop", series, "step"))
        return f'<div class="plots">{"".join(made)}</div>' if any(made) else ""

    def _sets(self) -> str:
        rows = self.summary.sets
        names = list(dict.fromkeys(name for each in rows.values() for name in each))
        if not names:
            return ""
        body = [
            [method, *(f"{each[name]:.4g}" if name in each else "–" for name in names)] for method, each in rows.items()
        ]
        return _table(["method", *names], body)

    def _judge(self) -> str:
        if not (self.out / JUDGE).is_file():
            return ""
        try:
            found = summarize(self.out / JUDGE)
        except (ValueError, OSError) as error:
            return f"<p>{escape(str(error))}</p>"
        rows = cast("list[dict[str, Any]]", found["rows"])
        head = list(dict.fromkeys(name for row in rows for name in row))
        text = _table(head, [[_value(row.get(name)) for name in head] for row in rows])
        points = [
            (
                f"{row['ours']} over {row['other']} ({row['judge']}, {row['view']})",
                *_rates(row, "win_rate", "low", "high"),
            )
            for row in rows
        ]
        text += plots.intervals("win rate, with its 95 % interval", points, mark=0.5)
        rest = {name: value for name, value in found.items() if name != "rows" and value}
        return text + f"<pre>{escape(json.dumps(rest, indent=1, ensure_ascii=False))}</pre>"

    def _bench(self) -> str:
        path = self.out / BENCH
        if not path.is_file():
            return ""
        try:
            rows = [row for row in json.loads(path.read_text())["rows"] if row["status"] == "ok"]
            times = {(row["method"], row["side"]): sorted(row["seconds"])[len(row["seconds"]) // 2] for row in rows}
            peaks = {(row["method"], row["side"]): row["peak"] / 1e9 for row in rows}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            return f"<p>{escape(f'{path}: no times of python -m benchmarks ({error!r})')}</p>"
        text = _table(
            ["method", "output", "seconds", "peak GB"],
            [[name, f"{side}²", f"{times[name, side]:.3f}", f"{peaks[name, side]:.2f}"] for name, side in times],
        )
        published = _published("published_latency.csv")
        for title, own, unit, factor in (("seconds", times, "ms", 1000.0), ("peak memory, GB", peaks, "gb", 1.0)):
            series = dict[str, list[tuple[float, float]]]()
            for (name, side), value in own.items():
                series.setdefault(name, []).append((side * side / 1e6, value))
            for row in published:
                if row[unit] and row["mode"] == "eager":
                    point = int(row["side"]) ** 2 / 1e6, float(row[unit]) / factor
                    series.setdefault(f"{row['method']} (the paper)", []).append(point)
            text += plots.lines(title, series, "megapixels", log=True)
        return text

    def _dividers(self) -> str:
        return "".join(self._divider(image) for image in self.summary.images[: self.sheets])

    def _divider(self, image: str) -> str:
        """Two crops, one over the other up to a line that can be moved."""
        found = {label: name for label, key in _crops(image, self.summary).items() if (name := self._embed(key))}
        if not found:
            return ""
        labels = list(found)
        left, right = labels[min(1, len(labels) - 1)], labels[-1 if len(labels) > 2 else 0]

        def choice(side: str, chosen: str) -> str:
            options = "".join(
                f'<option value="{name}"{" selected" if label == chosen else ""}>{escape(label)}</option>'
                for label, name in found.items()
            )
            return f'<select aria-label="{side} of {escape(image)}">{options}</select>'

        return (
            f'<figure class="d"><figcaption>{escape(image)}</figcaption>'
            f'<div class="s"><i class="{found[right]}" role="img" aria-label="right"></i>'
            f'<i class="{found[left]} o" role="img" aria-label="left"></i></div>'
            f'<input type="range" min="0" max="100" value="50" aria-label="divider of {escape(image)}">'
            f"<div>{choice('left', left)}{choice('right', right)}</div></figure>"
        )

    def _worst(self) -> str:
        """Of each metric, the images on which the first method scores worst, beside the originals."""
        first = next(iter(self.summary.by_method.values()), {})
        text = list[str]()
        for metric, column in self.summary.columns.items():
            scored = [row for row in first.values() if not math.isnan(row.figures.get(metric, math.nan))]
            if metric == "seconds" or len(scored) < 2:
                continue
            scored.sort(key=lambda row: (_goodness(row.figures[metric], column), row.image))
            shown = "".join(self._worst_figure(row, metric, column) for row in scored[:WORST])
            text.append(f'<details><summary>{escape(column.title)}</summary><div class="x">{shown}</div></details>')
        note = f"<p>Of {escape(next(iter(self.summary.by_method), ''))}; the original on the left.</p>"
        return note + "".join(text) if text else ""

    def _worst_figure(self, row: Row, metric: str, column: Column) -> str:
        names = [self._embed(key) for key in (row.original, row.key) if key]
        crops = "".join(f'<i class="{name}"></i>' for name in names if name)
        caption = f"{row.image}: {row.figures[metric]:.{column.digits}f}"
        return f"<figure><figcaption>{escape(caption)}</figcaption>{crops}</figure>"

    def _failures(self) -> str:
        rows = [[each.image, each.method or "all", "", each.reason] for each in self.summary.broken]
        for row in self.summary.rows:
            rows += [[row.image, row.method, metric, reason] for metric, reason in row.failed.items()]
        return _table(["image", "method", "metric", "reason"], rows) if rows else ""

    def _settings(self) -> str:
        summary = self.summary
        methods = [
            [method, licence, json.dumps(summary.settings.get(method), ensure_ascii=False)]
            for method, licence in summary.methods.items()
        ]
        metrics = [[column.title, column.source] for column in summary.columns.values()]
        metrics += [[name, f"not measured: {reason}"] for name, reason in summary.absent.items()]
        versions = [[name, value] for name, value in environment().items()]
        return (
            _table(["method", "licence", "settings"], methods)
            + _table(["metric", "code, weights, licence"], metrics)
            + _table(["", "version"], versions)
        )

    def _embed(self, key: str) -> str | None:
        """The class of a crop, which is on the page once; None if it is not there."""
        if key not in self.embedded:
            path = self.out / CROPS / f"{key}.webp"
            if not path.is_file():
                return None
            with Image.open(path) as crop:
                self.embedded[key] = (f"k{key[:10]}", crop.size)
        return self.embedded[key][0]

    def _data(self, key: str) -> str:
        return base64.b64encode((self.out / CROPS / f"{key}.webp").read_bytes()).decode()


def _goodness(value: float, column: Column) -> float:
    """Small where a figure is bad."""
    return value if "↑" in column.title else -abs(value) if "→ 0" in column.title else -value


def _means_table(
    means: Mapping[str, Mapping[str, Mean]], columns: Mapping[str, Column], missing: Mapping[str, str] | None = None
) -> str:
    shown = {name: column for name, column in columns.items() if any(name in each for each in means.values())}
    head = "".join(f"<th>{escape(column.title)}</th>" for column in shown.values())
    rows = [
        f"<tr><th>{escape(method)}</th>{''.join(_mean(each.get(name), column) for name, column in shown.items())}</tr>"
        for method, each in means.items()
    ]
    rows += [
        f'<tr><th>{escape(name)}</th><td colspan="{len(shown)}">not run: {escape(reason)}</td></tr>'
        for name, reason in (missing or {}).items()
    ]
    return f'<div class="w"><table><tr><th>method</th>{head}</tr>{"".join(rows)}</table></div>'


def _mean(mean: Mean | None, column: Column | None) -> str:
    if mean is None or column is None:
        return "<td>–</td>"
    value = f"{mean.mean:.{column.digits}f}"
    if math.isfinite(mean.half_width):
        value += f" ± {mean.half_width:.{column.digits}f}"
    left = "".join(f", {count} {what}" for count, what in ((mean.failed, "failed"), (mean.nan, "NaN")) if count)
    return f"<td>{value}<small>n {mean.n}{left}</small></td>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f'<div class="w"><table class="l">{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _rates(row: Mapping[str, Any], *names: str) -> tuple[float, float, float]:
    a, b, c = (math.nan if row[name] is None else float(row[name]) for name in names)
    return a, b, c


def _value(value: object) -> str:
    return "–" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _asset(name: str) -> str:
    return resources.files("pixdec.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _published(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(_asset(name).splitlines()))


__all__ = ["PAGE", "write_report"]
