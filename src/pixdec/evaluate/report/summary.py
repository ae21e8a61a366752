"""What an evaluation found: means with n and interval, paired differences, figures of each image; as Markdown for
people and as JSON for machines."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from pixdec import __version__
from pixdec.devices import environment
from pixdec.evaluate.methods import Lineup
from pixdec.evaluate.metrics.table import Metrics
from pixdec.evaluate.report.tables import Column, Table, means_table, sets_table
from pixdec.evaluate.results import Broken, Row, from_plain, plain
from pixdec.evaluate.statistics import TOLERATED, Mean, mean_of, paired

SUMMARY, TABLE = "summary.json", "table.md"  # in the output folder
COMMAND = "command"  # the fact that is code
SECONDS = Column("seconds ↓", 3, "the time of one image, from its latent to 8-bit pixels; the first warms up")


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
        tolerated: the share of images that may fail or give NaN before a mean is withheld.
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
    tolerated: float = TOLERATED

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

    @property
    def first(self) -> str:
        """The method that the others are compared with."""
        return next(iter(self.by_method), "")

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
                metric: mean_of(list(values.values()), self.tolerated)
                for metric in self.columns
                if (values := self.values(method, metric))
            }
            for method in self.by_method
        }

    @cached_property
    def differences(self) -> dict[str, dict[str, Mean]]:
        """Of the first method less each other, image by image: method -> metric -> mean. Empty for a single image."""
        return {
            other: {
                metric: paired(ours, theirs, self.tolerated)
                for metric in self.columns
                if (ours := self.values(self.first, metric)) and (theirs := self.values(other, metric))
            }
            for other in list(self.by_method)[1:]
            if len(self.images) > 1
        }

    @property
    def withheld(self) -> list[tuple[str, str]]:
        """(method, what is wrong in a line) for each metric that failed on too many images."""
        return [
            (method, f"{metric}: {mean.failed + mean.nan} of {mean.n + mean.failed + mean.nan} images have no figure")
            for method, each in self.means.items()
            for metric, mean in each.items()
            if mean.withheld
        ]

    def table(self) -> Table:
        """The means, a row for each method, missing ones too."""
        return means_table(self.means, self.columns, self.missing)

    def difference_table(self) -> Table:
        return means_table(self.differences, self.columns)

    def folder_table(self) -> Table:
        """The means of each folder of images, such as a size of text; no rows if there is one folder only."""
        folders, means = dict[str, list[Row]](), dict[str, dict[str, Mean]]()
        for row in self.rows:
            folders.setdefault(row.image.rpartition("/")[0] or ".", []).append(row)
        for folder, rows in folders.items() if len(folders) > 1 else ():
            part = replace(self, rows=rows, broken=())
            means |= {f"{folder}: {method}": mean for method, mean in part.means.items()}
        return means_table(means, self.columns)

    def failures(self) -> list[dict[str, str | None]]:
        """What has no figure: image, method, metric, reason; None stands for all."""
        found = [(each.image, each.method, None, each.reason) for each in self.broken]
        for row in self.rows:
            found += [(row.image, row.method, metric, reason) for metric, reason in row.failed.items()]
        return [dict(zip(("image", "method", "metric", "reason"), each, strict=True)) for each in found]

    def markdown(self) -> str:
        """Title, facts, and tables of means, paired differences and each image's figures."""
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {f'`{fact}`' if name == COMMAND else fact}" for name, fact in self.facts.items()]
        lines += ["- figures: mean ± 95 % interval of the mean, over n images", ""]
        lines += self.table().markdown()
        if self.differences:
            lines += ["", f"## {self.first} less the others, image by image", "", *self.difference_table().markdown()]
        if self.folder_table().rows:
            lines += ["", "## Each folder", "", *self.folder_table().markdown()]
        if self.sets:
            lines += ["", "## Sets of images", "", *sets_table(self.sets).markdown()]
        each = [
            [row.image, row.method, *(column.text(row.figures.get(name)) for name, column in self.columns.items())]
            for row in self.rows
        ]
        head = ["image", "method", *(column.title for column in self.columns.values())]
        return "\n".join([*lines, "", "## Each image", "", *Table(head, each).markdown()]) + "\n"

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
                    "means": _plain(self.means)[method],
                    "figures": {
                        image: {metric: plain(value) for metric, value in row.figures.items()}
                        for image, row in self.by_method[method].items()
                    },
                }
                for method, licence in self.methods.items()
            },
            "differences": _plain(self.differences),
            "sets": {method: dict(figures) for method, figures in self.sets.items()},
            "missing": dict(self.missing),
            "absent": dict(self.absent),
            "failures": self.failures(),
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
    cropped, images = len({row.image for row in rows if row.cropped}), len({row.image for row in rows})
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
        known["not measured"] = "; ".join(dict.fromkeys(metrics.absent.values()))
    return Summary(
        title,
        rows,
        {**columns, "seconds": SECONDS},
        {label: method.licence for label, method in of_method.items()},
        [  # an image that no method could be given counts as failed for each
            Broken(each.image, label, each.reason)
            for each in outcomes
            if isinstance(each, Broken)
            for label in ([each.method] if each.method else of_method)
        ],
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
                means.setdefault(label, {})[metric] = paired(sides[0], sides[1])
    if not means:
        raise ValueError(f"{first} and {second}: they share no image")
    return means_table(means, columns).markdown(), _plain(means)


def _plain(means: Mapping[str, Mapping[str, Mean]]) -> dict[str, dict[str, object]]:
    return {name: {metric: mean.to_json() for metric, mean in each.items()} for name, each in means.items()}


def _read_summary(folder: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        assert document["methods"] and document["columns"]
    except (OSError, ValueError, KeyError, AssertionError, TypeError) as error:
        raise ValueError(f"{folder}: expected the folder of a run, with {SUMMARY} of this version") from error
    return document


def _machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' if count > 1 else ''}" if device.type == "cpu" else ""
    return f"{name}{threads}, PyTorch {torch.__version__}, pixdec {__version__}"
