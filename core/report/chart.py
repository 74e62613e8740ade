"""Charts as inline SVG: numbers in, markup out. Colours and fonts are the page's; every chart names itself."""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 46
_TICKS = 5


class Series(NamedTuple):
    """A line of a chart; `style` is a class of the page."""

    name: str
    style: str
    values: Sequence[float]


class Chart(NamedTuple):
    """What a chart says besides its marks; `description` is read aloud instead of it."""

    name: str  # an id within the page
    title: str
    description: str
    x_label: str
    y_label: str


class Scale(NamedTuple):
    """A range of values on the vertical axis."""

    low: float
    high: float

    def y(self, value: float) -> float:
        """Pixels from the top."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def line_chart(chart: Chart, x_labels: Sequence[str], series: Sequence[Series]) -> str:
    """Levels over equally wide places."""
    scale = _scale([value for line in series for value in line.values])
    marks = [_line(line, scale) for line in series]
    return _svg(chart, scale, [*marks, *_x_axis(x_labels, chart.x_label)])


def histogram(chart: Chart, edges: Sequence[str], values: Sequence[float], style: str = "candidate") -> str:
    """Bars from zero between edges, of which there is one more; every second edge is labelled where it lies."""
    scale = _scale([0.0, *values])
    width = _span(len(values))
    bars = []
    for index, value in enumerate(values):
        x, y = _x(index, len(values)) - width / 2, scale.y(value)
        label = f"{edges[index]} to {edges[index + 1]}"
        height = scale.y(scale.low) - y
        bars.append(
            f'<rect class="bar {style}" x="{x + 1:.1f}" y="{y:.1f}" width="{max(width - 2, 1):.1f}" '
            f'height="{height:.1f}"><title>{escape(label)}: {value:,g}</title></rect>'
        )
    labels = [label if index % 2 == 0 else "" for index, label in enumerate(edges)]
    return _svg(chart, scale, [*bars, *_x_axis(labels, chart.x_label, first=_LEFT, span=width)])


def range_chart(
    chart: Chart, x_labels: Sequence[str], points: Sequence[tuple[float, float, float]], style: str = "candidate"
) -> str:
    """Points (value, low, high) with their intervals."""
    scale = _scale([end for point in points for end in point])
    marks = []
    for index, (label, (value, low, high)) in enumerate(zip(x_labels, points, strict=True)):
        x = _x(index, len(points))
        marks.append(
            f"<g><title>{escape(label)}: {value:g} [{low:g}, {high:g}]</title>"
            f'<line class="whisker {style}" x1="{x:.1f}" x2="{x:.1f}" '
            f'y1="{scale.y(low):.1f}" y2="{scale.y(high):.1f}"/>'
            f'<circle class="point {style}" cx="{x:.1f}" cy="{scale.y(value):.1f}" r="4"/></g>'
        )
    return _svg(chart, scale, [*marks, *_x_axis(x_labels, chart.x_label)])


class Dot(NamedTuple):
    """A point of a scatter chart and what it is."""

    x: float
    y: float
    label: str
    style: str = "candidate"


def scatter(chart: Chart, dots: Sequence[Dot]) -> str:
    """Points on two scales."""
    scale, across = _scale([dot.y for dot in dots]), _scale([dot.x for dot in dots])

    def x_of(value: float) -> float:
        return _LEFT + (value - across.low) / (across.high - across.low) * (WIDTH - _LEFT - _RIGHT)

    marks = [
        f'<circle class="point {dot.style}" cx="{x_of(dot.x):.1f}" cy="{scale.y(dot.y):.1f}" r="5">'
        f"<title>{escape(dot.label)}</title></circle>"
        for dot in dots
    ]
    places = ticks(across.low, across.high)
    texts = [
        f'<text class="tick" x="{x_of(tick):.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{tick:,.6g}</text>'
        for tick in places
    ]
    return _svg(chart, scale, [*marks, *texts, *_x_axis([], chart.x_label)])


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some five of them."""
    raw = (high - low) / (_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _scale(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(high), 1e-300):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    found = ticks(low, high)
    return Scale(found[0], found[-1])


def _svg(chart: Chart, scale: Scale, marks: Sequence[str]) -> str:
    names = f"{chart.name}-title {chart.name}-description"
    grid = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{scale.y(tick):.1f}" y2="{scale.y(tick):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 8}" y="{scale.y(tick) + 4:.1f}" text-anchor="end">{tick:,.6g}</text>'
        for tick in ticks(scale.low, scale.high)
    ]
    middle = (HEIGHT - _BOTTOM + _TOP) / 2
    label = f'<text class="label" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{names}">',
            f'<title id="{chart.name}-title">{escape(chart.title)}</title>',
            f'<desc id="{chart.name}-description">{escape(chart.description)}</desc>',
            *grid,
            f"{label}{escape(chart.y_label)}</text>",
            *marks,
            "</svg>",
        ]
    )


def _x_axis(labels: Sequence[str], title: str, first: float | None = None, span: float | None = None) -> list[str]:
    """Labels at the middle of equal places, or from `first` on every `span` pixels; some are left out if many."""
    every = max(1, -(-sum(map(bool, labels)) // 12))
    span = _span(len(labels)) if span is None else span
    first = _x(0, len(labels)) if first is None else first
    places = [(first + index * span, label) for index, label in enumerate(labels) if label]
    texts = [
        f'<text class="tick" x="{x:.1f}" y="{HEIGHT - _BOTTOM + 18}" text-anchor="middle">{escape(label)}</text>'
        for x, label in places[::every]
    ]
    middle = (WIDTH - _RIGHT + _LEFT) / 2
    return [*texts, f'<text class="label" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(title)}</text>']


def _line(line: Series, scale: Scale) -> str:
    count, half = len(line.values), _span(len(line.values)) / 2
    levels = [
        f"{_x(index, count) - half:.1f} {scale.y(value):.1f}H{_x(index, count) + half:.1f}"
        for index, value in enumerate(line.values)
    ]
    return f'<path class="line {line.style}" d="M{"L".join(levels)}"><title>{escape(line.name)}</title></path>'


def _span(count: int) -> float:
    return (WIDTH - _LEFT - _RIGHT) / max(count, 1)


def _x(index: int, count: int) -> float:
    return _LEFT + (index + 0.5) * _span(count)
