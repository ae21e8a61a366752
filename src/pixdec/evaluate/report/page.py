"""report.html: everything that an evaluation found, on one page that opens from disk and needs nothing else."""

from __future__ import annotations

import base64
import csv
import json
import math
import statistics
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from PIL import Image

from pixdec.devices import environment
from pixdec.evaluate.judge.table import notes, rates_table, summarize
from pixdec.evaluate.report import plots
from pixdec.evaluate.report.sheets import save_sheet
from pixdec.evaluate.report.summary import SUMMARY, TABLE, Summary
from pixdec.evaluate.report.tables import Column, Table, figures_table, mean_text
from pixdec.evaluate.results import Row
from pixdec.evaluate.run import CROPS
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
    text = summary.markdown()
    if found := "\n".join(f"![{image}](<{sheet}>)" for image, sheet in shown.items() if sheet):
        order = "The original first, then the methods in the order of the table."
        text += f"\n## Sheets\n\nThe most detailed piece of a photograph, at 100 %. {order}\n\n{found}\n"
    page = _Page(summary, out, sheets).text()
    for name, content in ((SUMMARY, summary.to_json()), (TABLE, text), (PAGE, page)):
        with replacing(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
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
            ("Sets of images", figures_table(summary.sets).html()),
            ("Judges", self._judge()),
            ("Latency and memory", self._bench()),
            ("At 100 %", "".join(map(self._divider, summary.images[: self.sheets]))),
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
        text = "<p>Mean ± 95 % interval of the mean (Student's t), and the number n of images that it is of; none if "
        text += f"more than {summary.tolerated:.0%} of the images have no figure.</p>{summary.table().html()}"
        if summary.differences:
            text += f"<h3>{escape(summary.first)} less the others, image by image</h3>"
            text += summary.difference_table().html()
        folders = summary.folder_table().html()
        return text + (folders and f"<h3>Each folder</h3>{folders}")

    def _paper(self) -> str:
        means, columns = self.summary.means, self.summary.columns
        measured = {
            name: next((own for own in owns if any(own in each for each in means.values())), "")
            for name, (_, owns) in PAPER_COLUMNS.items()
        }
        if not any(measured.values()):
            return ""
        rows = [
            [method, "", *(mean_text(each.get(own), columns.get(own, Column("")), -1) for own in measured.values())]
            for method, each in means.items()
        ]
        rows += [[name, "", f"not run: {why}"] for name, why in self.summary.missing.items()]
        published = [
            [row["method"], f"Table {row['table']}: {row['group']}", *(row[name] or "–" for name in PAPER_COLUMNS)]
            for row in _published("published.csv")
        ]
        head = ["method", "published in", *(heading for heading, _ in PAPER_COLUMNS.values())]
        note = f"<p>Ours in black, the paper's in grey ({SOURCE}): its images come from generators, "
        return note + "so compare only like with like.</p>" + Table(head, rows + published, grey=len(rows)).html()

    def _plots(self) -> str:
        summary, made = self.summary, list[str]()
        stops = {method: method.rpartition(" @") for method in summary.means if " @" in method}
        for name, column in summary.columns.items():
            means = {method: each[name] for method, each in summary.means.items() if name in each}
            if len(means) > 1:
                rows = [(method, mean.mean, *mean.interval) for method, mean in means.items()]
                made.append(plots.intervals(column.title, rows))
            if len({stop for _, _, stop in stops.values()}) > 1:
                series = dict[str, list[tuple[float, float]]]()
                for method in (method for method in stops if method in means):
                    plain, _, stop = stops[method]
                    series.setdefault(plain, []).append((float(stop), means[method].mean))
                made.append(
                    plots.lines(f"{column.title} over the step of the stop", dict(sorted(series.items())), "step")
                )
        return f'<div class="plots">{"".join(made)}</div>' if any(made) else ""

    def _judge(self) -> str:
        if not (self.out / JUDGE).is_file():
            return ""
        try:
            found = summarize(self.out / JUDGE)
        except (ValueError, OSError) as error:
            return f"<p>{escape(str(error))}</p>"
        points = list[tuple[str, float, float, float]]()
        for row in found["rows"]:
            rates = (math.nan if row[name] is None else float(row[name]) for name in ("win_rate", "low", "high"))
            points.append((f"{row['ours']} over {row['other']} ({row['judge']}, {row['view']})", *rates))  # pyright: ignore[reportArgumentType]
        said = "".join(f"<p>{escape(note)}</p>" for note in notes(found))
        return rates_table(found).html() + said + plots.intervals("win rate, with its 95 % interval", points, mark=0.5)

    def _bench(self) -> str:
        path = self.out / BENCH
        if not path.is_file():
            return ""
        try:
            rows = [row for row in json.loads(path.read_text())["rows"] if row["status"] == "ok"]
            times = {(row["method"], row["side"]): statistics.median(row["seconds"]) for row in rows}
            peaks = {(row["method"], row["side"]): row["peak"] / 1e9 for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            return f"<p>{escape(f'{path}: no times of python -m benchmarks ({error!r})')}</p>"
        cells = [[name, f"{side}²", f"{times[name, side]:.3f}", f"{peaks[name, side]:.2f}"] for name, side in times]
        text = Table(["method", "output", "seconds", "peak GB"], cells).html()
        for title, own, unit, factor in (("seconds", times, "ms", 1000.0), ("peak memory, GB", peaks, "gb", 1.0)):
            series = dict[str, list[tuple[float, float]]]()
            for (name, side), value in own.items():
                series.setdefault(name, []).append((side * side / 1e6, value))
            for row in _published("published_latency.csv"):
                if row[unit] and row["mode"] == "eager":
                    point = int(row["side"]) ** 2 / 1e6, float(row[unit]) / factor
                    series.setdefault(f"{row['method']} (the paper)", []).append(point)
            text += plots.lines(title, series, "megapixels", log=True)
        return text

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
        text = list[str]()
        for metric, column in self.summary.columns.items():
            rows = self.summary.by_method.get(self.summary.first, {}).values()
            scored = [row for row in rows if not math.isnan(row.figures.get(metric, math.nan))]
            if metric == "seconds" or len(scored) < 2:
                continue
            scored.sort(key=lambda row: (_goodness(row.figures[metric], column), row.image))
            shown = "".join(self._worst_figure(row, metric, column) for row in scored[:WORST])
            text.append(f'<details><summary>{escape(column.title)}</summary><div class="x">{shown}</div></details>')
        note = f"<p>Of {escape(self.summary.first)}; the original on the left.</p>"
        return note + "".join(text) if text else ""

    def _worst_figure(self, row: Row, metric: str, column: Column) -> str:
        names = [self._embed(key) for key in (row.original, row.key) if key]
        crops = "".join(f'<i class="{name}"></i>' for name in names if name)
        caption = f"{row.image}: {column.text(row.figures[metric])}"
        return f"<figure><figcaption>{escape(caption)}</figcaption>{crops}</figure>"

    def _failures(self) -> str:
        rows = [[value or "all" for value in each.values()] for each in self.summary.failures()]
        return Table(["image", "method", "metric", "reason"], rows).html()

    def _settings(self) -> str:
        summary = self.summary
        settings = {name: json.dumps(summary.settings.get(name), ensure_ascii=False) for name in summary.methods}
        methods = [[name, licence, settings[name]] for name, licence in summary.methods.items()]
        metrics = [[column.title, column.source] for column in summary.columns.values()]
        metrics += [[name, f"not measured: {reason}"] for name, reason in summary.absent.items()]
        versions = [[name, str(value)] for name, value in environment().items()]
        tables = (
            Table(["method", "licence", "settings"], methods),
            Table(["metric", "code, weights, licence"], metrics),
            Table(["", "version"], versions),
        )
        return '<div class="l">' + "".join(table.html() for table in tables) + "</div>"

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


def _asset(name: str) -> str:
    return resources.files("pixdec.evaluate.report").joinpath(name).read_text(encoding="utf-8")


def _published(name: str) -> list[Mapping[str, Any]]:
    return list(csv.DictReader(_asset(name).splitlines()))


__all__ = ["PAGE", "write_report"]
