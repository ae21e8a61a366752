"""The picture of a bench: latency and memory against output megapixels, both axes logarithmic, every line named at its
end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pixdec.bench.rows import Bench, Row
from pixdec.io.files import replacing

PICTURE = "bench.webp"
GAP = 0.038  # between names, as a share of the axis
# Ours in blues, from light to dark; the others by what decodes, the way in the dashes.
_OURS = {"plain": "#7f8c9b", "eager": "#6baed6", "compiled": "#2171b5", "graphs": "#08306b"}
_OTHERS = {"vae:flux1": "#e6550d", "vae:flux2": "#2ca02c", "vae:sdxl": "#9467bd", "tiny": "#8c6d31"}
_ALONE = "#444444"


def draw(bench: Bench, path: Path) -> None:
    """Writes the picture.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: there is no figure to draw.
        OSError: it cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not any(row.status == "ok" for row in bench.rows):
        raise ValueError("no row has figures, so there is nothing to draw")
    figure: Any = Figure(figsize=(15.5, 7), dpi=110, layout=None)
    FigureCanvasAgg(figure)
    model, machine = bench.model["name"], bench.machine["name"]
    settings = f"{bench.settings['dtype']}, batch {bench.settings['batch']}, {bench.settings['steps'] or '?'} steps"
    figure.suptitle(f"{model} beside others on {machine} ({settings})", fontsize=13)
    panels = figure.subplots(1, 2)
    _panel(panels[0], bench, "seconds, median", lambda row: row.median, spread=True)
    _panel(panels[1], bench, "peak memory, GB, weights included", lambda row: row.memory["peak"] / 1e9)
    figure.subplots_adjust(left=0.05, right=0.84, top=0.91, bottom=0.09, wspace=0.56)
    with replacing(path) as temporary:
        figure.savefig(temporary, format=path.suffix.removeprefix("."))


def _panel(axes: Any, bench: Bench, label: str, value: Callable[[Row], float], *, spread: bool = False) -> None:
    ends = list[tuple[str, str, float, float]]()  # name, colour, x and y of the last point
    crossed = False
    for name in bench.methods:
        found = [row for side in bench.sides if (row := bench.row(name, side)) is not None]
        rows = [row for row in found if row.status == "ok"]
        if not rows:
            continue
        colour, dashes = _style(name)
        xs, ys = [row.megapixels for row in rows], [value(row) for row in rows]
        width = 2.2 if rows[0].is_ours else 1.3
        axes.plot(xs, ys, color=colour, linestyle=dashes, marker="o", markersize=4, linewidth=width)
        if spread:
            axes.vlines(
                xs, [min(row.seconds) for row in rows], [max(row.seconds) for row in rows], color=colour, alpha=0.5
            )
        stopped = next((row for row in found if row.status != "ok" and row.side > rows[-1].side), None)
        if stopped is not None:
            axes.plot(xs[-1:], ys[-1:], color=colour, marker="x", markersize=11, markeredgewidth=2)
        why = "" if stopped is None else f"  (× {stopped.side}²)"
        crossed = crossed or stopped is not None
        ends.append((name + why, colour, xs[-1], ys[-1]))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    sides = bench.sides
    ticks = [bench.settings["batch"] * side**2 / 1e6 for side in sides]
    axes.set_xticks(ticks, [f"{side}²\n{tick:.2g} MP" for side, tick in zip(sides, ticks, strict=True)], fontsize=9)
    axes.minorticks_off()
    low, high = axes.get_ylim()
    marks = [m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high))) for m in (1, 2, 5)]
    axes.set_yticks([mark for mark in marks if low <= mark <= high])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_ylim(low, high)
    axes.set_title(f"{label}; ×: no figure from that size on" if crossed else label, loc="left", fontsize=11, pad=14)
    _name_lines(axes, ends, low, high)


def _name_lines(axes: Any, ends: Sequence[tuple[str, str, float, float]], low: float, high: float) -> None:
    """Each name right of the axes, as high as its line ends but for what keeps names apart; a thin line leads there."""
    ordered = sorted(ends, key=lambda end: end[3])
    span = math.log(high / low)
    places = spaced([math.log(end[3] / low) / span for end in ordered], GAP)
    for (name, colour, x, y), place in zip(ordered, places, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.03, place),
            textcoords="axes fraction",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "alpha": 0.5, "shrinkB": 4},
        )


def spaced(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in [0,1] moved as little as it takes for each to lie at least `gap` above the one before: those
    that are too close are spread evenly about their middle, as far as the ends allow."""
    groups = [(place, 1) for place in places]  # the middle of each group, and how many are in it
    i = 0
    while i + 1 < len(groups):
        (low, few), (high, many) = groups[i], groups[i + 1]
        if high - low >= gap * (few + many) / 2 - 1e-12:
            i += 1
            continue
        groups[i : i + 2] = [((low * few + high * many) / (few + many), few + many)]
        i = max(0, i - 1)
    apart = [middle + gap * (k - (count - 1) / 2) for middle, count in groups for k in range(count)]
    below = [min(place, 1 - gap * (len(apart) - 1 - i)) for i, place in enumerate(apart)]
    return [max(place, gap * i) for i, place in enumerate(below)]


def _style(name: str) -> tuple[str, str]:
    """Colour and dashes of a method."""
    if name in _OURS:
        return _OURS[name], "-"
    colour = next((colour for head, colour in _OTHERS.items() if name.startswith(head)), _ALONE)
    return colour, ":" if "+" in name else "--" if ":tiled" in name else "-." if ":sliced" in name else "-"


__all__ = ["PICTURE", "draw", "spaced"]
