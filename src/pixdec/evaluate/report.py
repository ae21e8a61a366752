"""Tables of figures: what each method scores on each image, as Markdown for people and JSON for machines."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pixdec.evaluate.metrics import Picture, color_drift, consistency, pattern, psnr, spectrum_error, ssim
from pixdec.evaluate.niqe import niqe
from pixdec.evaluate.ssimulacra2 import ssimulacra2
from pixdec.evaluate.st_lpips import st_lpips
from pixdec.io.files import replacing

Figures = Mapping[str, float]  # metric -> value, of one image


@dataclass(frozen=True)
class Column:
    """How a metric is shown: heading with unit and better direction, digits after the point."""

    heading: str
    digits: int


COLUMNS: Mapping[str, Column] = {
    "psnr": Column("PSNR dB ↑", 2),
    "ssim": Column("SSIM ↑", 3),
    "st_lpips": Column("ST-LPIPS (VGG) ↓", 3),
    "ssimulacra2": Column("SSIMULACRA2 ↑", 1),
    "niqe": Column("NIQE (published model) ↓", 2),
    "spectrum_error": Column("spectrum error, bels ↓", 3),
    "spectrum_error_high": Column("spectrum error above 1/scale of Nyquist, bels ↓", 3),
    "color_drift": Column("color drift ΔE2000 ↓", 2),
    "pattern": Column("regular pattern, bels → 0", 2),
    "consistency": Column("consistency dB ↑", 2),
}


def measure(
    image: Picture,
    reference: Picture,
    *,
    low: Picture | None = None,
    scale: int = 4,
    only: Collection[str] | None = None,
) -> dict[str, float]:
    """All figures of one decoded image (H, W, 3) against its reference, 8-bit RGB both; keys as in COLUMNS.

    With `low` (H/scale, W/scale, 3), what the decoder should agree with when downscaled, also the consistency. `scale`
    sets the band of "spectrum_error_high", the part of the spectrum that a small image does not hold. `only`: these
    keys and no others. ValueError when sizes do not fit.
    """
    functions: dict[str, Callable[[], float]] = {
        "psnr": lambda: psnr(image, reference),
        "ssim": lambda: ssim(image, reference),
        "st_lpips": lambda: st_lpips(image, reference),
        "ssimulacra2": lambda: ssimulacra2(image, reference),
        "niqe": lambda: niqe(image),
        "spectrum_error": lambda: spectrum_error(image, reference),
        "spectrum_error_high": lambda: spectrum_error(image, reference, band=(1 / scale, 1.0)),
        "color_drift": lambda: color_drift(image, reference),
        "pattern": lambda: pattern(image),
    }
    if low is not None:
        functions["consistency"] = lambda: consistency(image, low, scale=scale)
    return {metric: function() for metric, function in functions.items() if only is None or metric in only}


@dataclass(frozen=True)
class Report:
    """The figures of several methods on the same images.

    rows: method -> one dict of figures for each image, in the order of `images`; all images of a method have the same
    metrics, and a method may lack metrics that others have. facts: what a reader needs to judge and repeat it: command,
    data, hardware. columns: how metrics are shown that COLUMNS does not have; they come after those, in this order.
    """

    title: str
    images: Sequence[str]
    rows: Mapping[str, Sequence[Figures]]
    facts: Mapping[str, str] = field(default_factory=dict[str, str])
    columns: Mapping[str, Column] = field(default_factory=dict[str, Column])

    def __post_init__(self) -> None:
        if not self.images or not self.rows:
            raise ValueError(f"report {self.title!r}: expected at least one image and one method")
        for method, values in self.rows.items():
            if len(values) != len(self.images):
                raise ValueError(
                    f"{method!r} has figures of {len(values)} images: expected {len(self.images)}, one each"
                )
            for image, figures in zip(self.images, values, strict=True):
                if set(figures) != set(values[0]):
                    raise ValueError(f"{method!r} has {sorted(figures)} for {image}: expected {sorted(values[0])}")
                for metric, value in figures.items():
                    if math.isnan(value):
                        raise ValueError(f"{metric} of {method!r} on {image} is NaN: expected a number")

    def means(self) -> dict[str, dict[str, float]]:
        """method -> metric -> plain mean over the images; of decibels too."""
        return {
            method: {metric: sum(figures[metric] for figures in values) / len(values) for metric in values[0]}
            for method, values in self.rows.items()
        }

    def plain_means(self) -> dict[str, dict[str, float | str]]:
        """As `means`, for JSON: it has no infinity, so that of a perfect PSNR is the string "inf"."""
        return {method: _plain(figures) for method, figures in self.means().items()}

    def metrics(self) -> list[str]:
        """All metrics that any method has: those of COLUMNS and of `columns` in their order, then others as they
        come."""
        found = list(dict.fromkeys(metric for values in self.rows.values() for metric in values[0]))
        known = [metric for metric in (*COLUMNS, *self.columns) if metric in found]
        return list(dict.fromkeys([*known, *found]))

    def table(self) -> list[str]:
        """The means as lines of Markdown, a line for each method."""
        metrics = self.metrics()
        means = [[method, *self._cells(figures, metrics)] for method, figures in self.means().items()]
        return _table(["method", *(self._column(metric).heading for metric in metrics)], means)

    def markdown(self) -> str:
        """Title, facts, a table of means with a line for each method, and a table of each image's figures."""
        metrics = self.metrics()
        lines = [f"# {self.title}", ""]
        lines += [f"- {name}: {fact}" for name, fact in self.facts.items()]
        lines += [f"- mean over {len(self.images)} image{'s' if len(self.images) > 1 else ''}", ""]
        lines += self.table()
        lines += ["", "## Each image", ""]
        each = [
            [image, method, *self._cells(values[index], metrics)]
            for index, image in enumerate(self.images)
            for method, values in self.rows.items()
        ]
        lines += _table(["image", "method", *(self._column(metric).heading for metric in metrics)], each)
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Everything, unrounded; JSON has no infinity, so that of a perfect PSNR is the string "inf"."""
        document = {
            "title": self.title,
            "facts": dict(self.facts),
            "images": list(self.images),
            "means": self.plain_means(),
            "rows": {method: [_plain(figures) for figures in values] for method, values in self.rows.items()},
        }
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def write(self, path: str | Path) -> tuple[Path, Path]:
        """Write PATH.md and PATH.json, each whole or not at all; return both. OSError when one cannot be written."""
        stem = Path(path)
        written = stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")
        for target, text in zip(written, (self.markdown(), self.to_json()), strict=True):
            with replacing(target) as temporary:
                temporary.write_text(text, encoding="utf-8")
        return written

    def _column(self, metric: str) -> Column:
        return COLUMNS.get(metric) or self.columns.get(metric) or Column(metric, 3)

    def _cells(self, figures: Figures, metrics: Sequence[str]) -> list[str]:
        return [
            f"{figures[metric]:.{self._column(metric).digits}f}" if metric in figures else "–" for metric in metrics
        ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    ruler = ["---" if heading in ("image", "method") else "---:" for heading in headings]
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (headings, ruler, *rows)]


def _plain(figures: Figures) -> dict[str, float | str]:
    return {metric: value if math.isfinite(value) else str(value) for metric, value in figures.items()}
