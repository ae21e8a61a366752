"""Tables of text, and the one page or file they stand in: as Markdown; `page.html` has them as HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pixdec.evaluate.statistics import Mean

NAMES = ("image", "method", "judge", "")  # columns that stand to the left; figures stand to the right


@dataclass(frozen=True)
class Column:
    """How a metric is shown: title with unit and better direction, digits after the point, whose code and weights."""

    title: str
    digits: int = 3
    source: str = ""

    def text(self, value: float | None) -> str:
        """A figure of it."""
        return "–" if value is None else "NaN" if math.isnan(value) else f"{value:.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """A heading and rows of as many cells, or fewer, of which the last says why. Rows from `grey` on are greyed."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    grey: int | None = None

    def markdown(self) -> list[str]:
        """Its lines."""
        ruler = ["---" if heading in NAMES else "---:" for heading in self.head]
        rows = [[*row[:-1], *["–"] * (len(self.head) - len(row)), row[-1]] for row in self.rows]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.head, ruler, *rows)]


def means_table(
    means: Mapping[str, Mapping[str, Mean]], columns: Mapping[str, Column], missing: Mapping[str, str] | None = None
) -> Table:
    """A row for each method, with what is `missing`. A cell says how many figures it is of where these are not as many
    as the most."""
    shown = {name: column for name, column in columns.items() if any(name in each for each in means.values())}
    most = max((mean.n for each in means.values() for mean in each.values()), default=0)
    rows = [
        [label, str(most), *(mean_text(each.get(name), column, most) for name, column in shown.items())]
        for label, each in means.items()
    ]
    rows += [[label, "0", f"not run: {reason}"] for label, reason in (missing or {}).items()]
    return Table(["method", "n", *(column.title for column in shown.values())], rows)


def mean_text(mean: Mean | None, column: Column, most: int) -> str:
    """A mean with its interval, and its number of figures if that is not `most`."""
    if mean is None:
        return "–"
    text = "no mean" if mean.withheld else column.text(mean.mean)
    if math.isfinite(mean.half_width):
        text += f" ± {mean.half_width:.{column.digits}f}"
    left = [f"{count} {what}" for count, what in ((mean.failed, "failed"), (mean.nan, "NaN")) if count]
    return text if mean.n == most and not left else f"{text} ({', '.join([f'n {mean.n}', *left])})"


def figures_table(rows: Mapping[str, Mapping[str, float | int]]) -> Table:
    """A row for each method, with four digits of whatever figures any has."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    cells = [
        [method, *(f"{each[name]:.4g}" if name in each else "–" for name in names)] for method, each in rows.items()
    ]
    return Table(["method", *names], cells)
