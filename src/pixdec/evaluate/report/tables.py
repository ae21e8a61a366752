"""What an evaluation found: means with n and interval, paired differences, figures of each image; as Markdown for
people and as JSON for machines."""

from __future__ import annotations

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pixdec import __version__
from pixdec.devices import environment
from pixdec.evaluate.methods import Lineup
from pixdec.evaluate.metrics.table import Metrics
from pixdec.evaluate.results import Broken, Row, from_plain, plain
from pixdec.evaluate.statistics import Mean, mean_of, paired
from pixdec.io.files import replacing

SUMMARY, TABLE = "summary.json", "table.md"  # in the output folder


@dataclass(frozen=True)
class Column:
    """How a metric is shown: title with unit and better direction, digits after the point, whose code and weights."""

    title: str
    digits: int = 3
    source: str = ""


SECONDS = Column("seconds ↓", 2, "the time of one image, from its latent to 8-bit pixels; the first warms up")


@dataclass(frozen=True)
class Summary:
    """The figures of several methods on the same images.

    Attributes:
        rows, broken: what `evaluate` yielded.
        columns: by metric, in the order of the table.
        methods: in the order of the table, with the licence of each; all that were to be run.
        missing: methods that cannot run here, and why.
        absent: metrics that cannot, and why.
        facts: what a reader needs to judge and repeat it: command, data, hardware.
        settings: of each method, all that determines its images (JSON).
        sets: by method, figures of `sets.compare_sets`, under "label" of the network.
    """

    title: str
    rows: Sequence[Row]
    columns: Mapping[str, Column]
    methods: Mapping[str, str]
    broken: Sequence[Broken] = ()
    missing: Mapping[str, str] = field(default_factory=dict[str, str])
    absent: Mapping[str, str] = field(default_factory=dict[str, str])
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    sets: Mapping[str, Mapping[str, float | int]] = field(default_factory=dict[str, Mapping[str, float | int]])

    @cached_property
    def images(self) -> list[str]:
        """Those that any method has figures of."""
        return list(dict.fromkeys(row.image for row in self.rows))

    @cached_property
    def by_method(self) -> dict[str, dict[str, Row]]:
        """method -> image -> row; methods without any row too."""
        found: dict[str, dict[str, Row]] = {method: {} for method in self.methods}
        for row in self.rows:
            found.setdefault(row.method, {})[row.image] = row
        return found

    def values(self, method: str, metric: str) -> dict[str, float | None]:
        """image -> figure; None where metric or method failed. Empty where the metric does not apply."""
        found = self.by_method[method]
        values = {image: row.figures.get(metric) for image, row in found.items()}
        if not any(metric in row.figures or metric in row.failed for row in found.values()):
            return {}
        return values | {each.image: None for each in self.broken if each.method == method}

    @cached_property
    def means(self) -> dict[str, dict[str, Mean]]:
        """method -> metric -> mean of what it has."""
        return {
            method: {
                metric: mean_of(list(values.values()))
                for metric in self.columns
                if (values := self.values(method, metric))
            }
            for method in self.by_method
        }

    def differences(self) -> dict[str, dict[str, Mean]]:
        """Of the first method less each other, image by image: method -> metric -> mean."""
        first, *others = self.by_method
        return {
            other: {
                metric: paired(ours, theirs)
                for metric in self.columns
                if (ours := self.values(first, metric)) and (theirs := self.values(other, metric))
            }
            for other in others
        }

    def table(self) -> list[str]:
        """The means as lines of Markdown, a line for each method, missing ones too."""
        return table_of(self.means, self.columns, self.missing)

    def difference_table(self) -> list[str]:
        """The paired differences as lines of Markdown."""
        return table_of(self.differences(), self.columns)

    def markdown(self) -> str:
        """Title, facts, a table of means, paired differences, and a table of each image's figures."""
        lines = [f"# {self.title}", "", *(f"- {name}: {fact}" for name, fact in self.facts.items())]
        lines += [f"- figures: mean ± 95 % interval of the mean; n = {len(self.images)} unless it is said", ""]
        lines += self.table()
        if len(self.by_method) > 1 and len(self.images) > 1:
            lines += ["", f"## {next(iter(self.by_method))} less the others, image by image", ""]
            lines += self.difference_table()
        if self.sets:
            lines += ["", *sets_table(self.sets)]
        lines += ["", "## Each image", ""]
        head = ["image", "method", *(column.title for column in self.columns.values())]
        each = [
            [row.image, row.method, *(_cell(row.figures.get(name), column) for name, column in self.columns.items())]
            for row in self.rows
        ]
        return "\n".join([*lines, *markdown_table(head, each)]) + "\n"

    def to_json(self) -> str:
        """Everything, unrounded."""
        document = {
            "title": self.title,
            "facts": dict(self.facts),
            "versions": environment(),
            "images": self.images,
            "columns": {name: asdict(column) for name, column in self.columns.items()},
            "methods": {
                method: {
                    "licence": licence,
                    "settings": self.settings.get(method),
                    "means": {metric: as_json(mean) for metric, mean in self.means[method].items()},
                    "figures": {
                        image: {metric: plain(value) for metric, value in row.figures.items()}
                        for image, row in self.by_method[method].items()
                    },
                }
                for method, licence in self.methods.items()
            },
            "differences": {
                other: {metric: as_json(mean) for metric, mean in means.items()}
                for other, means in self.differences().items()
            },
            "sets": {method: dict(figures) for method, figures in self.sets.items()},
            "missing": dict(self.missing),
            "absent": dict(self.absent),
            "failures": [asdict(each) for each in self.broken]
            + [
                {"image": row.image, "method": row.method, "metric": metric, "reason": reason}
                for row in self.rows
                for metric, reason in row.failed.items()
            ],
        }
        return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def summarize(
    title: str,
    outcomes: Sequence[Row | Broken],
    lineup: Lineup,
    metrics: Metrics,
    facts: Mapping[str, str] | None = None,
) -> Summary:
    """What a run found. `facts` come before those that are known here.

    Raises:
        ValueError: no image has figures.
    """
    rows = [outcome for outcome in outcomes if isinstance(outcome, Row)]
    if not rows:
        raise ValueError(f"none of {len({each.image for each in outcomes})} images has figures, so there is no table")
    found = {name for row in rows for name in (*row.figures, *row.failed)}
    columns = {
        metric.name: Column(metric.title, metric.digits, metric.source)
        for metric in metrics.chosen
        if metric.name in found
    }
    labels = dict.fromkeys(outcome.method for outcome in outcomes if outcome.method is not None)
    # In the order of the lineup; of a generator's stops, the first of a method first.
    of_method = {
        label: method for method in lineup.methods for label in labels if label.partition(" @")[0] == method.name
    }
    cropped = len({row.image for row in rows if row.cropped})
    images = len({row.image for row in rows})
    known = {
        **(facts or {}),
        "latents": f"{lineup.space.name}, encoded once by {lineup.encoder.label}; all methods get the same",
        "weights of the encoder": lineup.encoder.digest[:12],
        "machine": _machine(lineup.device),
    }
    if cropped:
        sides = f"in the middle, to sides that are multiples of {lineup.multiple}"
        known["cropped"] = f"{cropped} of {images} images, {sides}"
    if metrics.absent:
        known["not measured"] = "; ".join(metrics.absent.values())
    broken = [outcome for outcome in outcomes if isinstance(outcome, Broken)]
    # An image that no method could be given counts as failed for each.
    broken = [
        part
        for each in broken
        for part in ([each] if each.method else [Broken(each.image, label, each.reason) for label in of_method])
    ]
    return Summary(
        title,
        rows,
        {**columns, "seconds": SECONDS},
        {label: method.licence for label, method in of_method.items()},
        broken,
        lineup.missing,
        metrics.absent,
        known,
        {label: dict(method.settings) for label, method in of_method.items()},
    )


def compare_runs(first: str | Path, second: str | Path) -> tuple[list[str], dict[str, Any]]:
    """Two folders of runs: differences, first less second, image by image, of the methods that both have; or of their
    only methods. As lines of Markdown, and as JSON.

    Raises:
        ValueError: a folder is none of a run, or they share neither methods nor images.
    """
    documents = [_read_summary(Path(folder)) for folder in (first, second)]
    methods = [list(document["methods"]) for document in documents]
    shared = [(name, name) for name in methods[0] if name in methods[1]]
    if not shared and len(methods[0]) == len(methods[1]) == 1:
        shared = [(methods[0][0], methods[1][0])]
    if not shared:
        listed = " and ".join(", ".join(names) for names in methods)
        raise ValueError(f"{first} and {second}: they share no method ({listed})")
    columns = {name: Column(**column) for name, column in documents[0]["columns"].items()}
    means = dict[str, dict[str, Mean]]()
    for names in shared:
        figures = [document["methods"][name]["figures"] for document, name in zip(documents, names, strict=True)]
        label = " − ".join(dict.fromkeys(names))
        for metric in columns:
            sides = [
                {image: from_plain(row[metric]) for image, row in each.items() if metric in row} for each in figures
            ]
            if set(sides[0]) & set(sides[1]):
                means.setdefault(label, {})[metric] = paired(*sides)
    if not means:
        raise ValueError(f"{first} and {second}: they share no image")
    document = {label: {metric: as_json(mean) for metric, mean in each.items()} for label, each in means.items()}
    return table_of(means, columns), document


def _read_summary(folder: Path) -> dict[str, Any]:
    path = folder / SUMMARY
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert document["methods"] and document["columns"]
    except (OSError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{folder}: expected the folder of a run, with {SUMMARY} of this version") from error
    return document


def write_tables(summary: Summary, out: Path, sheets: Mapping[str, str]) -> None:
    """Write OUT/summary.json and OUT/table.md, each whole or not at all; `sheets`, image -> file, are shown below the
    tables. OSError if one cannot be written."""
    text = summary.markdown()
    if sheets:
        order = "The original first, then the methods in the order of the table."
        text += f"\n## Sheets\n\nThe most detailed piece of a photograph, at 100 %. {order}\n\n"
        text += "\n".join(f"![{image}](<{sheet}>)" for image, sheet in sheets.items()) + "\n"
    for name, content in ((SUMMARY, summary.to_json()), (TABLE, text)):
        with replacing(out / name) as temporary:
            temporary.write_text(content, encoding="utf-8")


def as_json(mean: Mean) -> dict[str, object]:
    """A mean for JSON."""
    low, high = map(plain, mean.interval)
    counts = {"n": mean.n, "failed": mean.failed, "nan": mean.nan}
    return {"mean": plain(mean.mean), "std": plain(mean.std), **counts, "interval": [low, high]}


def table_of(
    means: Mapping[str, Mapping[str, Mean]], columns: Mapping[str, Column], missing: Mapping[str, str] | None = None
) -> list[str]:
    """Means as lines of Markdown. A cell says how many figures it is of where these are not as many as the most."""
    shown = {name: column for name, column in columns.items() if any(name in each for each in means.values())}
    most = max((mean.n for each in means.values() for mean in each.values()), default=0)
    rows = [
        [label, str(most), *(_mean_cell(each.get(name), column, most) for name, column in shown.items())]
        for label, each in means.items()
    ]
    rows += [[label, "0", *["–"] * (len(shown) - 1), f"not run: {reason}"] for label, reason in (missing or {}).items()]
    return markdown_table(["method", "n", *(column.title for column in shown.values())], rows)


def sets_table(sets: Mapping[str, Mapping[str, float | int]]) -> list[str]:
    """Figures of sets as lines of Markdown."""
    names = list(dict.fromkeys(name for figures in sets.values() for name in figures))
    rows = [
        [method, *(f"{figures[name]:.4g}" if name in figures else "–" for name in names)]
        for method, figures in sets.items()
    ]
    return markdown_table(["method", *names], rows)


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table of Markdown; names to the left, numbers to the right."""
    ruler = ["---" if heading in ("image", "method") else "---:" for heading in headings]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (headings, ruler, *rows)]


def _mean_cell(mean: Mean | None, column: Column, most: int) -> str:
    if mean is None:
        return "–"
    text = _cell(mean.mean, column)
    if math.isfinite(mean.half_width):
        text += f" ± {mean.half_width:.{column.digits}f}"
    left = [f"{count} {what}" for count, what in ((mean.failed, "failed"), (mean.nan, "NaN")) if count]
    return text if mean.n == most and not left else f"{text} ({', '.join([f'n {mean.n}', *left])})"


def _cell(value: float | None, column: Column) -> str:
    return "–" if value is None else "NaN" if math.isnan(value) else f"{value:.{column.digits}f}"


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return f"{name}{threads}, PyTorch {torch.__version__}, pixdec {__version__}"


__all__ = ["SUMMARY", "TABLE", "Column", "Summary", "compare_runs", "markdown_table", "summarize", "write_tables"]
