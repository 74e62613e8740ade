"""Matrices as heat maps and texts with coloured words: plain SVG and HTML, a few levels of each colour.

A map is one path for each level rather than a box for each cell: twelve layers of twelve heads stay a small file.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from numpy.typing import NDArray

LEVELS = 12
CELL, LABEL, CHARACTER, LONGEST = 14, 12, 6.6, 14  # pixels of a cell, of a letter's height and width; letters shown
SMALL = 132  # pixels of a small map
Matrix = NDArray[Any]


def heat_map(values: Matrix, rows: Sequence[str], columns: Sequence[str], name: str) -> Markup:
    """A map [rows, columns] with its labels; positive values in the colour of heat, negative ones in the other."""
    left = 12 + CHARACTER * max([len(_short(text)) for text in rows], default=0)
    top = 12 + CHARACTER * max([len(_short(text)) for text in columns], default=0)
    width, height = left + CELL * len(columns) + 4, top + CELL * len(rows) + 4
    marks = [
        f'<text class="label" x="{left - 6:.1f}" y="{top + CELL * (place + 0.75):.1f}" text-anchor="end">'
        f"{escape(_short(text))}</text>"
        for place, text in enumerate(rows)
    ]
    for place, text in enumerate(columns):
        x, y = left + CELL * (place + 0.75), top - 6
        marks.append(
            f'<text class="label" x="{x:.1f}" y="{y:.1f}" transform="rotate(-90 {x:.1f} {y:.1f})">'
            f"{escape(_short(text))}</text>"
        )
    marks.append(f'<g transform="translate({left:.1f} {top:.1f}) scale({CELL})">{"".join(_paths(values))}</g>')
    style = f'style="width:{width:.0f}px;min-width:{width:.0f}px"'
    return _svg(name, width, height, marks, style)


def heat_maps(maps: Sequence[tuple[str, Matrix]], name: str) -> Markup:
    """Small maps next to one another, each below its title."""
    parts = []
    for title, values in maps:
        rows, columns = values.shape
        frame = f'<rect class="frame" width="{columns}" height="{rows}"/>'
        marks = [frame, *_paths(values)]
        svg = _svg(f"{name}, {title}", columns, rows, marks, f'style="width:{SMALL}px;min-width:0"')
        parts.append(Markup("<div>{}<small>{}</small></div>").format(svg, title))
    return Markup('<div class="maps">{}</div>').format(Markup().join(parts))


def coloured(text: str, spans: Sequence[tuple[int, int, float]], largest: float, name: str) -> Markup:
    """A text whose spans (start, end, value) are coloured by their value, the strongest at `largest`."""
    parts, place = [], 0
    for start, end, value in spans:
        level = _level(value, largest)
        style = f"{'up' if value > 0 else 'down'} l{level}" if level else ""
        parts.append(escape(text[place:start]))
        parts.append(Markup('<span class="{}" title="{}">{}</span>').format(style, f"{value:+.4f}", text[start:end]))
        place = end
    parts.append(escape(text[place:]))
    return Markup('<p class="words" aria-label="{}">{}</p>').format(name, Markup().join(parts))


def scale(largest: float) -> Markup:
    """What the colours of `coloured` stand for."""
    steps = [-LEVELS, -LEVELS // 2, LEVELS // 2, LEVELS]
    parts = []
    for step in steps:
        style = f"{'up' if step > 0 else 'down'} l{abs(step)}"
        parts.append(Markup('<span class="{}">{}</span>').format(style, f" {largest * step / LEVELS:+.3g} "))
    return Markup('<p class="soft words">{}</p>').format(Markup(" ").join(parts))


def _level(value: float, largest: float) -> int:
    """From 0, which is not coloured, to LEVELS."""
    return min(LEVELS, round(LEVELS * abs(value) / largest)) if largest > 0 else 0


def _paths(values: Matrix) -> Iterator[str]:
    """One path for each level of each sign; cells that are next to each other in a row are one box."""
    largest = float(np.abs(values).max(initial=0))
    levels = np.array([[_level(value, largest) for value in row] for row in values.tolist()])
    levels *= np.where(values < 0, -1, 1)
    for level in sorted({*levels.reshape(-1).tolist()} - {0}):
        boxes = "".join(f"M{first} {row}h{count}v1h-{count}z" for row, first, count in _runs(levels == level))
        yield f'<path class="{"up" if level > 0 else "down"} l{abs(level)}" d="{boxes}"/>'


def _runs(chosen: NDArray[np.bool_]) -> Iterator[tuple[int, int, int]]:
    """(row, first column, count) of each run of true cells."""
    padded = np.pad(chosen, ((0, 0), (1, 1))).astype(np.int8)
    rows, edges = np.nonzero(np.diff(padded, axis=1))
    for place in range(0, len(rows), 2):
        yield int(rows[place]), int(edges[place]), int(edges[place + 1] - edges[place])


def _svg(name: str, width: float, height: float, marks: Iterable[str], style: str) -> Markup:
    return Markup(  # noqa: S704 - every text in it is escaped where it is written
        f'<svg class="heat" viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(name)}" {style}>'
        f"{''.join(marks)}</svg>"
    )


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
