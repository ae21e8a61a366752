"""Tables of text, and the one page or file they stand in: as Markdown; `page.html` has them as HTML."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pixdec.evaluate.statistics import Mean

# Columns that stand to the left; figures stand to the right.
WORDS = frozenset(
    {"", "image", "method", "judge", "ours, other", "view", "published in", "metric", "reason", "licence", "settings"}
    | {"code, weights, licence", "version"}
)
SETS = {
    "frechet": "Fréchet distance",
    "kid": "KID",
    "patch_frechet": "Fréchet distance of patches",
    "patch_kid": "KID of patches",
}


@dataclass(frozen=True)
class Column:
    """How a metric is shown: title with unit and better direction, digits after the point, whose code and weights."""

    title: str
    digits: int = 3
    source: str = ""

    def text(self, value: float | None) -> str:
        """A figure of it."""
        return "–" if value is None else "NaN" if math.isnan(value) else f"{value:z.{self.digits}f}"


@dataclass(frozen=True)
class Table:
    """A heading and rows of as many cells, or fewer, of which the last says why. Rows from `grey` on are greyed."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    grey: int | None = None

    @property
    def words(self) -> list[bool]:
        """Of each column, whether it holds words."""
        return [heading in WORDS for heading in self.head]

    def markdown(self) -> list[str]:
        """Its lines."""
        ruler = ["---" if words else "---:" for words in self.words]
        rows = [[*row[:-1], *["–"] * (len(self.head) - len(row)), row[-1]] for row in self.rows]
        return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (self.head, ruler, *rows)]


def means_table(
    means: Mapping[str, Mapping[str, Mean]], columns: Mapping[str, Column], missing: Mapping[str, str] | None = None
) -> Table:
    """A row for each method, with what is `missing`."""
    shown = {name: column for name, column in columns.items() if any(name in each for each in means.values())}
    rows = [[label, *mean_cells([each.get(name) for name in shown], shown.values())] for label, each in means.items()]
    rows += [[label, "0", f"not run: {reason}"] for label, reason in (missing or {}).items()]
    return Table(["method", "n", *(column.title for column in shown.values())], rows)


def mean_cells(means: Sequence[Mean | None], columns: Iterable[Column]) -> list[str]:
    """How many figures most of the means are of, then each with its interval; also of how many where that differs."""
    counts = ["" if mean is None else _count(mean) for mean in means]
    ((usual, _),) = Counter(filter(None, counts)).most_common(1) or [("0", 0)]
    cells = [usual]
    for mean, column, count in zip(means, columns, counts, strict=True):
        text = "–" if mean is None else "no mean" if mean.withheld else column.text(mean.mean)
        if mean is not None and math.isfinite(mean.half_width):
            text += f" ± {mean.half_width:.{column.digits}f}"
        cells.append(f"{text} (n {count})" if count not in ("", usual) else text)
    return cells


def _count(mean: Mean) -> str:
    lost = [f"{count} {what}" for count, what in ((mean.failed, "failed"), (mean.nan, "NaN")) if count]
    return ", ".join([str(mean.n), *lost])


def sets_table(rows: Mapping[str, Mapping[str, float | int]]) -> Table:
    """A row for each method, with four digits of whatever `sets_of` found for any; the network is part of a name."""
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    cells = [  # rounding noise about 0 is none
        [method, *(f"{round(each[name], 6):z.4g}" if name in each else "–" for name in names)]
        for method, each in rows.items()
    ]
    parts = [(name.partition(" ")[0], name) for name in names]
    head = [f"{name.replace(kind, SETS[kind])} ↓" if kind in SETS else name for kind, name in parts]
    return Table(["method", *head], cells)
