"""Small plots as inline SVG: points with intervals, and lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, LEFT, RIGHT, ROW = 640, 250, 24, 22
COLORS = ("#0b62a4", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0f766e", "#be123c", "#4d5562")


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], mark: float | None = None) -> str:
    """A row for each (name, value, low, high): a point and its interval, which may be NaN. `mark`: a vertical line."""
    finite = [x for _, *values in rows for x in (*values, *([] if mark is None else [mark])) if math.isfinite(x)]
    if not finite:
        return ""
    low, high = _span(finite)
    height = ROW * len(rows) + 44

    def x(value: float) -> float:
        return round(LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    parts = [f'<text x="0" y="14" class="t">{escape(title)}</text>', *_axis(low, high, x, height)]
    if mark is not None:
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="22" y2="{height - 20}" class="m"/>')
    for index, (name, value, start, end) in enumerate(rows):
        y = 22 + ROW * index + ROW // 2
        parts.append(f'<text x="{LEFT - 10}" y="{y + 4}" text-anchor="end">{escape(_short(name))}</text>')
        if math.isfinite(start) and math.isfinite(end):
            parts.append(f'<line x1="{x(start)}" x2="{x(end)}" y1="{y}" y2="{y}" class="i"/>')
        if math.isfinite(value):
            parts.append(f'<circle cx="{x(value)}" cy="{y}" r="4"><title>{escape(name)}: {value:.4g}</title></circle>')
    return _svg(height, title, parts)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], across: str, *, log: bool = False) -> str:
    """A line for each name through (x, y). `across`: what x is. `log`: both axes logarithmic, for positive values."""

    def scale(value: float) -> float:
        return math.log10(value) if log else value

    points = {
        name: [(scale(a), scale(b)) for a, b in each if math.isfinite(b) and (not log or min(a, b) > 0)]
        for name, each in series.items()
    }
    points = {name: each for name, each in points.items() if each}
    if not points:
        return ""
    xs, ys = (_span([point[axis] for each in points.values() for point in each]) for axis in (0, 1))
    height, left, bottom = 260 + 16 * len(points), 64, 236

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            round(left + (point[0] - xs[0]) / (xs[1] - xs[0]) * (WIDTH - left - RIGHT), 1),
            round(bottom - (point[1] - ys[0]) / (ys[1] - ys[0]) * (bottom - 30), 1),
        )

    parts = [f'<text x="0" y="14" class="t">{escape(title)}</text>']
    for value in _ticks(*xs):
        px = place((value, ys[0]))[0]
        parts.append(f'<line x1="{px}" x2="{px}" y1="24" y2="{bottom}" class="g"/>')
        parts.append(f'<text x="{px}" y="{bottom + 14}" text-anchor="middle">{_number(value, log=log)}</text>')
    for value in _ticks(*ys):
        py = place((xs[0], value))[1]
        parts.append(f'<line x1="{left}" x2="{WIDTH - RIGHT}" y1="{py}" y2="{py}" class="g"/>')
        parts.append(f'<text x="{left - 6}" y="{py + 4}" text-anchor="end">{_number(value, log=log)}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{bottom - 6}" text-anchor="end">{escape(across)}</text>')
    for index, (name, each) in enumerate(points.items()):
        color, y = COLORS[index % len(COLORS)], bottom + 34 + 16 * index
        path = " ".join(f"{px},{py}" for px, py in map(place, sorted(each)))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{px}" cy="{py}" r="3.5" fill="{color}" style="fill:{color}"/>' for px, py in map(place, each)
        ]
        parts.append(f'<rect x="{left}" y="{y - 9}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{left + 16}" y="{y}">{escape(name)}</text>')
    return _svg(height, title, parts)


def _axis(low: float, high: float, x: object, height: int) -> list[str]:
    assert callable(x)
    parts = list[str]()
    for value in _ticks(low, high):
        parts.append(f'<line x1="{x(value)}" x2="{x(value)}" y1="22" y2="{height - 20}" class="g"/>')
        parts.append(f'<text x="{x(value)}" y="{height - 6}" text-anchor="middle">{_number(value, log=False)}</text>')
    return parts


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    return head + "".join(parts) + "</svg>"


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """About five round values within."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 6)
    return [round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _number(value: float, *, log: bool) -> str:
    return f"{10**value:.3g}" if log else f"{value:.6g}"


def _short(name: str) -> str:
    return name if len(name) <= 38 else f"…{name[-37:]}"


__all__ = ["intervals", "lines"]
