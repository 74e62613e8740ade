"""Plots as inline SVG: numbers in, markup out. Colours and fonts are the page's; every plot names itself."""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from piston.core.report.chart import HEIGHT, WIDTH, Chart, ticks

_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 16, 12, 46
_ROW, _LABELS = 26, 262  # pixels of a bar's place, and of what stands before the bars
_DECADE = 10.0
_FACTORS = ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), tuple(index / 10 for index in range(10, 100)))
_FEWEST = 3  # ticks


class Curve(NamedTuple):
    """Points joined in order; `style` is a class of the page, `marks` says whether each point is drawn."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    marks: bool = True


class Bar(NamedTuple):
    """A value with its interval, on a row of its own."""

    name: str
    style: str
    value: float
    low: float | None
    high: float | None
    text: str


class Axis(NamedTuple):
    """A range of values laid over pixels first .. last, evenly or by decades."""

    low: float
    high: float
    first: float
    last: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Pixels of a value, kept within the axis."""
        kept = min(max(value, self.low), self.high)
        share = (
            math.log(kept / self.low) / math.log(self.high / self.low)
            if self.is_log
            else (kept - self.low) / (self.high - self.low)
        )
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round numbers within the axis."""
        if not self.is_log:
            return [tick for tick in ticks(self.low, self.high) if self.low <= tick <= self.high * (1 + 1e-9)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for factors in _FACTORS:
            candidates = [factor * _DECADE**power for power in powers for factor in factors]
            found = [tick for tick in candidates if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]
            if len(found) >= _FEWEST:
                break
        return found


def curves(chart: Chart, lines: Sequence[Curve], *, log_x: bool = False, log_y: bool = False) -> str:
    """Lines over a numeric axis; y starts at zero unless it goes by decades."""
    x = _axis([value for line in lines for value in line.xs], _LEFT, WIDTH - _RIGHT, is_log=log_x)
    ys = [value for line in lines for value in line.ys]
    y = _axis(ys if log_y else [0.0, *ys], HEIGHT - _BOTTOM, _TOP, is_log=log_y)
    marks = [mark for line in lines for mark in _curve(line, x, y)]
    return _svg(chart, HEIGHT, [*_grid(y), *_x_axis(x, chart.x_label, HEIGHT), *_y_label(chart.y_label), *marks])


def bars(chart: Chart, rows: Sequence[Bar], reference: float | None = None) -> str:
    """Horizontal bars from zero with whiskers, and a line at `reference`."""
    height = _TOP + _BOTTOM + _ROW * len(rows)
    ends = [0.0, *(value for row in rows for value in (row.value, row.high or row.value))]
    x = _axis(ends if reference is None else [*ends, reference], _LABELS, WIDTH - 130, is_log=False)
    at = x.at(0.0 if reference is None else reference)
    marks = [mark for index, row in enumerate(rows) for mark in _bar(row, x, _TOP + _ROW * (index + 0.5), at)]
    if reference is not None:
        marks.append(f'<line class="reference-line" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    return _svg(chart, height, [*_x_axis(x, chart.x_label, height), *marks])


def _axis(values: Sequence[float], first: float, last: float, *, is_log: bool) -> Axis:
    low, high = min(values), max(values)
    if is_log:
        return Axis(low / 1.15, high * 1.15, first, last, is_log=True)
    if high - low <= 1e-9 * max(abs(high), 1e-300):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    found = ticks(low, high)
    return Axis(found[0], found[-1], first, last)


def _svg(chart: Chart, height: float, marks: Sequence[str]) -> str:
    names = f"{chart.name}-title {chart.name}-description"
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{names}">',
            f'<title id="{chart.name}-title">{escape(chart.title)}</title>',
            f'<desc id="{chart.name}-description">{escape(chart.description)}</desc>',
            *marks,
            "</svg>",
        ]
    )


def _grid(y: Axis) -> list[str]:
    return [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{y.at(tick) + 4:.1f}" text-anchor="end">{tick:,.6g}</text>'
        for tick in y.ticks()
    ]


def _x_axis(x: Axis, title: str, height: float) -> list[str]:
    texts = [
        f'<text class="tick" x="{x.at(tick):.1f}" y="{height - _BOTTOM + 18:g}" text-anchor="middle">{tick:,.6g}</text>'
        f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM:g}"/>'
        for tick in x.ticks()
    ]
    middle = (x.first + x.last) / 2
    label = f'<text class="label" x="{middle:g}" y="{height - 6:g}" text-anchor="middle">{escape(title)}</text>'
    return [*texts, label]


def _y_label(text: str) -> list[str]:
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    start = f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
    return [f"{start}{escape(text)}</text>"]


def _curve(line: Curve, x: Axis, y: Axis) -> list[str]:
    points = [(x.at(a), y.at(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    joined = f'<path class="line {line.style}" d="M{path}"><title>{escape(line.name)}</title></path>'
    if not line.marks:
        return [joined]
    titled: Callable[[float, float], str] = lambda a, b: f"{escape(line.name)}: {a:,.6g}, {b:,.4g}"  # noqa: E731
    dots = [
        f'<circle class="point {line.style}" cx="{a:.1f}" cy="{b:.1f}" r="4"><title>{titled(u, v)}</title></circle>'
        for (a, b), u, v in zip(points, line.xs, line.ys, strict=True)
    ]
    return [joined, *dots]


def _bar(row: Bar, x: Axis, middle: float, clear: float) -> list[str]:
    """A bar with its whisker; the text stands right of both and of `clear`."""
    start, end = x.at(0.0), x.at(row.value)
    place = f'x="{start:.1f}" y="{middle - 8:.1f}" width="{max(end - start, 1):.1f}" height="16"'
    marks = [
        f'<text class="tick" x="{_LABELS - 8}" y="{middle + 4:.1f}" text-anchor="end">{escape(row.name)}</text>',
        f'<rect class="bar {row.style}" {place}><title>{escape(row.name)}: {escape(row.text)}</title></rect>',
    ]
    right = end
    if row.low is not None and row.high is not None:
        low, right = x.at(row.low), max(x.at(row.high), end)
        marks.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{x.at(row.high):.1f}'
            f'M{low:.1f} {middle - 5:.1f}v10M{x.at(row.high):.1f} {middle - 5:.1f}v10"/>'
        )
    marks.append(
        f'<text class="tick value" x="{max(right, clear) + 6:.1f}" y="{middle + 4:.1f}">{escape(row.text)}</text>'
    )
    return marks
