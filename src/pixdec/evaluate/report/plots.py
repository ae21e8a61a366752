"""Small plots as inline SVG: points with intervals, and lines."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape

WIDTH, RIGHT, ROW = 640, 24, 22
LETTER, LONGEST = 5.8, 56  # pixels, about; letters of a name
COLORS = ("#0b62a4", "#c2410c", "#15803d", "#7e22ce", "#b45309", "#0f766e", "#be123c", "#4d5562")
Axis = Callable[[float], float]  # value -> place


def intervals(title: str, rows: Sequence[tuple[str, float, float, float]], mark: float | None = None) -> str:
    """A row for each (name, value, low, high): a point and its interval, which may be NaN. `mark`: a vertical line."""
    finite = [x for _, *values in rows for x in (*values, *([] if mark is None else [mark])) if math.isfinite(x)]
    if not finite:
        return ""
    names = [name if len(name) <= LONGEST else f"…{name[1 - LONGEST :]}" for name, *_ in rows]
    span, bottom, left = _span(finite), ROW * len(rows) + 24, round(16 + LETTER * max(map(len, names)))
    x = _axis(span, left, WIDTH - RIGHT)
    parts = list(_columns(span, x, 22, bottom))
    if mark is not None:
        parts.append(f'<line x1="{x(mark)}" x2="{x(mark)}" y1="22" y2="{bottom}" class="m"/>')
    for index, (name, value, start, end) in enumerate(rows):
        y = 22 + ROW * index + ROW // 2
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(names[index])}</text>')
        if math.isfinite(start) and math.isfinite(end):
            parts.append(f'<line x1="{x(start)}" x2="{x(end)}" y1="{y}" y2="{y}" class="i"/>')
        if math.isfinite(value):
            parts.append(f'<circle cx="{x(value)}" cy="{y}" r="4"><title>{escape(name)}: {value:.4g}</title></circle>')
    return _svg(bottom + 20, title, parts)


def lines(title: str, series: Mapping[str, Sequence[tuple[float, float]]], across: str, *, log: bool = False) -> str:
    """A line for each name through (x, y). `across`: what x is. `log`: both axes logarithmic, for positive values."""
    points = dict[str, list[tuple[float, float]]]()
    for name, each in series.items():
        kept = [(a, b) for a, b in each if math.isfinite(b) and (not log or min(a, b) > 0)]
        if kept:
            points[name] = sorted((math.log10(a), math.log10(b)) if log else (a, b) for a, b in kept)
    if not points:
        return ""
    xs, ys = (_span([point[axis] for each in points.values() for point in each]) for axis in (0, 1))
    left, right, bottom = 64, WIDTH - RIGHT, 236
    x, y = _axis(xs, left, right), _axis(ys, bottom, 30)
    parts = list(_columns(xs, x, 24, bottom, log=log))
    for value in _ticks(*ys):
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y(value)}" y2="{y(value)}" class="g"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4}" text-anchor="end">{_number(value, log=log)}</text>')
    parts.append(f'<text x="{right}" y="{bottom - 6}" text-anchor="end">{escape(across)}</text>')
    for index, (name, each) in enumerate(points.items()):
        color, row = COLORS[index % len(COLORS)], bottom + 34 + 16 * index
        path = " ".join(f"{x(a)},{y(b)}" for a, b in each)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts += [f'<circle cx="{x(a)}" cy="{y(b)}" r="3.5" fill="{color}" style="fill:{color}"/>' for a, b in each]
        parts.append(f'<rect x="{left}" y="{row - 9}" width="10" height="10" fill="{color}"/>')
        parts.append(f'<text x="{left + 16}" y="{row}">{escape(name)}</text>')
    return _svg(bottom + 24 + 16 * len(points), title, parts)


def _axis(span: tuple[float, float], start: float, end: float) -> Axis:
    return lambda value: round(start + (value - span[0]) / (span[1] - span[0]) * (end - start), 1)


def _columns(span: tuple[float, float], x: Axis, top: int, bottom: int, *, log: bool = False) -> Iterator[str]:
    """The vertical lines of the grid, and their values below."""
    for value in _ticks(*span):
        yield f'<line x1="{x(value)}" x2="{x(value)}" y1="{top}" y2="{bottom}" class="g"/>'
        yield f'<text x="{x(value)}" y="{bottom + 14}" text-anchor="middle">{_number(value, log=log)}</text>'


def _svg(height: int, title: str, parts: Sequence[str]) -> str:
    head = f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title, quote=True)}">'
    return f'{head}<text x="0" y="14" class="t">{escape(title)}</text>{"".join(parts)}</svg>'


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
