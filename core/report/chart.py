"""Charts as inline SVG. Colours and fonts come from the page; every chart has a title and a description."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from piston.core.report.axis import Axis, axis_of

WIDTH, HEIGHT = 720, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 68, 24, 12, 46
_ROW, _LABELS = 26, 262  # pixels of a bar's place, and of what stands before the bars
_VALUES, _LETTER = 130, 6.6  # least pixels right of the bars for their texts, and pixels of a letter
_CELL, _KEY = 16, 46  # of a heat map: a row, and what stands below
_MOST_LABELS = 12
_FAINT = 0.06  # opacity of the smallest value


class Chart(NamedTuple):
    """The texts of a chart; screen readers read `description` instead of the chart."""

    name: str  # an id within the page
    title: str
    description: str
    x_label: str
    y_label: str = ""


class Curve(NamedTuple):
    """Points joined in order; `style` is a CSS class of the page, `marks` says whether each point is drawn."""

    name: str
    style: str
    xs: Sequence[float]
    ys: Sequence[float]
    marks: bool = True


class Series(NamedTuple):
    """Values at equally wide places."""

    name: str
    style: str
    values: Sequence[float]


class Point(NamedTuple):
    """A labelled point; `low` and `high` are the ends of its interval."""

    x: float
    y: float
    label: str
    style: str = "candidate"
    low: float | None = None
    high: float | None = None


class Bar(NamedTuple):
    """A value with its interval, in its own row."""

    name: str
    style: str
    value: float
    low: float | None
    high: float | None
    text: str


class Cell(NamedTuple):
    """A value at a row and a column of a heat map."""

    row: str
    column: str
    value: float
    label: str
    is_framed: bool = False


def curves(chart: Chart, lines: Sequence[Curve], *, log_x: bool = False, log_y: bool = False) -> Markup:
    """Lines over a numeric axis; y starts at zero unless it goes by decades."""
    x = _across([value for line in lines for value in line.xs], is_log=log_x)
    ys = [value for line in lines for value in line.ys]
    y = _upright(ys if log_y else [0.0, *ys], is_log=log_y)
    marks = [mark for line in lines for mark in _curve(line, x, y)]
    return _plot(chart, y, [*_numbers(x, HEIGHT), *marks])


def scatter(chart: Chart, points: Sequence[Point]) -> Markup:
    """Points on two scales."""
    x, y = _across([point.x for point in points]), _upright([point.y for point in points])
    return _plot(chart, y, [*_numbers(x, HEIGHT), *(_point(point, x.at(point.x), y, 5) for point in points)])


def steps(chart: Chart, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Levels over equally wide places."""
    y = _upright([value for line in series for value in line.values])
    places = _places(len(labels))
    half = (places[1] - places[0]) / 2 if len(places) > 1 else (WIDTH - _LEFT - _RIGHT) / 2
    marks = []
    for line in series:
        levels = (
            f"{place - half:.1f} {y.at(value):.1f}H{place + half:.1f}"
            for place, value in zip(places, line.values, strict=True)
        )
        marks.append(
            f'<path class="line {line.style}" d="M{"L".join(levels)}"><title>{escape(line.name)}</title></path>'
        )
    return _plot(chart, y, [*marks, *_texts(zip(places, labels, strict=True))])


def ranges(chart: Chart, points: Sequence[Point]) -> Markup:
    """Points with intervals over equally wide places, each named below; the `x` of a point is ignored."""
    y = _upright([end for point in points for end in (point.y, point.low, point.high) if end is not None])
    places = _places(len(points))
    marks = [_point(point, place, y, 4) for place, point in zip(places, points, strict=True)]
    return _plot(chart, y, [*marks, *_texts((place, point.label) for place, point in zip(places, points, strict=True))])


def histogram(chart: Chart, edges: Sequence[str], values: Sequence[float], style: str = "candidate") -> Markup:
    """Bars from zero between edges (one more than bars); every second edge is labelled."""
    y = _upright([0.0, *values])
    width = (WIDTH - _LEFT - _RIGHT) / max(len(values), 1)
    marks = [
        _box(
            f"bar {style}",
            (_LEFT + index * width + 1, y.at(value), max(width - 2, 1), y.at(0.0) - y.at(value)),
            f"{edges[index]} to {edges[index + 1]}: {value:,g}",
        )
        for index, value in enumerate(values)
    ]
    labels = [(_LEFT + index * width, label) for index, label in enumerate(edges) if index % 2 == 0]
    return _plot(chart, y, [*marks, *_texts(labels)])


def bars(chart: Chart, rows: Sequence[Bar], reference: float | None = None) -> Markup:
    """Horizontal bars from zero with whiskers, and a line at `reference`."""
    height = _TOP + _BOTTOM + _ROW * len(rows)
    ends = [0.0, *(value for row in rows for value in (row.value, row.high or row.value))]
    last = WIDTH - max([_VALUES, *(_LETTER * len(row.text) for row in rows)])
    x = axis_of(ends if reference is None else [*ends, reference], _LABELS, last, is_log=False)
    at = x.at(0.0 if reference is None else reference)
    marks = [mark for index, row in enumerate(rows) for mark in _bar(row, x, _TOP + _ROW * (index + 0.5), at)]
    if reference is not None:
        marks.append(f'<line class="reference-line" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{height - _BOTTOM}"/>')
    return _svg(chart, height, [*_numbers(x, height), *_label(chart.x_label, (x.first + x.last) / 2, height), *marks])


def heat_map(chart: Chart, cells: Sequence[Cell], framed: str) -> Markup:
    """Rows and columns in the order of the cells; darker is more, by the logarithm. `framed` says what frames mean."""
    rows, columns = (list(dict.fromkeys(getattr(cell, name) for cell in cells)) for name in ("row", "column"))
    left, top = 48, 34
    width = (WIDTH - left) / max(len(columns), 1)
    values = [cell.value for cell in cells if cell.value > 0]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    marks = [_text(left + (index + 0.5) * width, top - 8, name, "middle") for index, name in enumerate(columns)]
    marks += [_text(left - 8, top + (index + 0.75) * _CELL, name, "end") for index, name in enumerate(rows)]
    for cell in cells:
        x, y = left + columns.index(cell.column) * width, top + rows.index(cell.row) * _CELL
        place = (x + 1, y + 1, width - 2, _CELL - 2)
        marks.append(_box("cell", place, cell.label, _strength(cell.value, low, high)))
        marks += [_box("kept", place)] if cell.is_framed else []
    y, num = top + _CELL * len(rows) + 14, 24
    marks += [
        _box(
            "cell", (left + 8 * step, y, 8, 10), opacity=_strength(low * (high / low) ** (step / (num - 1)), low, high)
        )
        for step in range(num)
    ]
    right = left + 8 * num
    marks += [_text(left, y + 24, f"{low:.2g}", "start"), _text(right, y + 24, f"{high:.2g}", "end")]
    marks += [_box("kept", (right + 24, y, 24, 10)), _text(right + 56, y + 9, framed, "start")]
    return _svg(chart, top + _CELL * len(rows) + _KEY, marks)


def _across(values: Sequence[float], *, is_log: bool = False) -> Axis:
    return axis_of(values, _LEFT, WIDTH - _RIGHT, is_log=is_log)


def _upright(values: Sequence[float], *, is_log: bool = False) -> Axis:
    return axis_of(values, HEIGHT - _BOTTOM, _TOP, is_log=is_log)


def _places(count: int) -> list[float]:
    """The middles of equally wide places."""
    return [_LEFT + (index + 0.5) * (WIDTH - _LEFT - _RIGHT) / count for index in range(count)]


def _plot(chart: Chart, y: Axis, marks: Sequence[str]) -> Markup:
    """Marks before a grid, with both labels."""
    grid = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y.at(tick):.1f}" y2="{y.at(tick):.1f}"/>'
        f"{_text(_LEFT - 8, y.at(tick) + 4, f'{tick:,.6g}', 'end')}"
        for tick in y.ticks()
    ]
    turned = f'<text class="label" transform="translate(14 {(HEIGHT - _BOTTOM + _TOP) / 2}) rotate(-90)"'
    label = f'{turned} text-anchor="middle">{escape(chart.y_label)}</text>'
    return _svg(chart, HEIGHT, [*grid, label, *_label(chart.x_label, (WIDTH - _RIGHT + _LEFT) / 2, HEIGHT), *marks])


def _svg(chart: Chart, height: float, marks: Iterable[str]) -> Markup:
    names = f"{chart.name}-title {chart.name}-description"
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-labelledby="{names}">',
        f'<title id="{chart.name}-title">{escape(chart.title)}</title>',
        f'<desc id="{chart.name}-description">{escape(chart.description)}</desc>',
        *marks,
        "</svg>",
    ]
    return Markup("\n".join(lines))  # noqa: S704 - every text in it is escaped where it is written


def _text(x: float, y: float, text: str, anchor: str, style: str = "tick") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _label(text: str, middle: float, height: float) -> list[str]:
    return [_text(middle, height - 6, text, "middle", "label")]


def _texts(places: Iterable[tuple[float, str]]) -> list[str]:
    """Texts below the plot; some are left out where they are many."""
    shown = [(x, label) for x, label in places if label]
    every = max(1, -(-len(shown) // _MOST_LABELS))
    return [_text(x, HEIGHT - _BOTTOM + 18, label, "middle") for x, label in shown[::every]]


def _numbers(x: Axis, height: float) -> list[str]:
    """The ticks of a horizontal axis, with lines."""
    return [
        f"{_text(x.at(tick), height - _BOTTOM + 18, f'{tick:,.6g}', 'middle')}"
        f'<line class="grid" x1="{x.at(tick):.1f}" x2="{x.at(tick):.1f}" y1="{_TOP}" y2="{height - _BOTTOM:g}"/>'
        for tick in x.ticks()
    ]


def _box(style: str, place: tuple[float, float, float, float], title: str = "", opacity: float | None = None) -> str:
    """A rectangle at (x, y, width, height)."""
    x, y, width, height = place
    fill = "" if opacity is None else f' fill-opacity="{opacity:.3f}"'
    box = f'<rect class="{style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{fill}'
    return f"{box}><title>{escape(title)}</title></rect>" if title else f"{box}/>"


def _point(point: Point, x: float, y: Axis, radius: int) -> str:
    whisker = ""
    title = point.label
    if point.low is not None and point.high is not None:
        ends = f'y1="{y.at(point.low):.1f}" y2="{y.at(point.high):.1f}"'
        whisker = f'<line class="whisker" x1="{x:.1f}" x2="{x:.1f}" {ends}/>'
        title = f"{point.label}: {point.y:g} [{point.low:g}, {point.high:g}]"
    circle = f'<circle class="point {point.style}" cx="{x:.1f}" cy="{y.at(point.y):.1f}" r="{radius}"/>'
    return f"<g><title>{escape(title)}</title>{whisker}{circle}</g>"


def _curve(line: Curve, x: Axis, y: Axis) -> list[str]:
    points = [(x.at(a), y.at(b)) for a, b in zip(line.xs, line.ys, strict=True)]
    path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
    joined = f'<path class="line {line.style}" d="M{path}"><title>{escape(line.name)}</title></path>'
    dots = [
        _point(Point(a, b, f"{line.name}: {a:,.6g}, {b:,.4g}", line.style), x.at(a), y, 4)
        for a, b in zip(line.xs, line.ys, strict=True)
    ]
    return [joined, *dots] if line.marks else [joined]


def _bar(row: Bar, x: Axis, middle: float, clear: float) -> list[str]:
    """A bar with its whisker; the text stands right of both and of `clear`."""
    start, end = x.at(0.0), x.at(row.value)
    place = (start, middle - 8, max(end - start, 1), 16)
    marks = [
        _text(_LABELS - 8, middle + 4, row.name, "end"),
        _box(f"bar {row.style}", place, f"{row.name}: {row.text}"),
    ]
    right = end
    if row.low is not None and row.high is not None:
        low, right = x.at(row.low), max(x.at(row.high), end)
        marks.append(
            f'<path class="whisker" d="M{low:.1f} {middle:.1f}H{x.at(row.high):.1f}'
            f'M{low:.1f} {middle - 5:.1f}v10M{x.at(row.high):.1f} {middle - 5:.1f}v10"/>'
        )
    return [*marks, _text(max(right, clear) + 6, middle + 4, row.text, "start", "tick value")]


def _strength(value: float, low: float, high: float) -> float:
    """Opacity by the logarithm of a value."""
    share = math.log(value / low) / math.log(high / low) if value > 0 and high > low else 0.0
    return _FAINT + (1 - _FAINT) * share
