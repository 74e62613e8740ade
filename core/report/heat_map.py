"""A heat map of linears, layers by kinds, as inline SVG. Colours come from the page."""

import math
import re
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

CELL_HEIGHT, LEFT, TOP, WIDTH, KEY = 16, 48, 34, 720, 46
STYLE = """
.heat text{fill:var(--soft);font-size:11px}.heat .kept{fill:none;stroke:var(--ink);stroke-width:2}
.heat .cell{fill:var(--heat)}
:root{--heat:#c2410c}@media (prefers-color-scheme:dark){:root{--heat:#fb923c}}
"""
_PLACE = re.compile(r"(?:^|\.)(\d+)\.(.+)$")


class Cell(NamedTuple):
    """Linears measured together, and whether some of them stay in float."""

    linears: Sequence[str]
    value: float
    is_kept: bool

    @property
    def layer(self) -> int | None:
        """The first number in the name of a module path."""
        match = _PLACE.search(self.linears[0])
        return int(match[1]) if match else None

    @property
    def kind(self) -> str:
        """What is the same in every layer."""
        parts = [match[2] if (match := _PLACE.search(name)) else name for name in self.linears]
        last = [part.rpartition(".")[2].removesuffix("_proj") for part in parts]
        return ", ".join(last)


def heat_map(cells: Sequence[Cell], name: str, title: str, described: str) -> str:
    """Rows are layers, columns kinds; darker is more, by the logarithm. What stays in float has a frame."""
    placed = [cell for cell in cells if cell.layer is not None]
    kinds = list(dict.fromkeys(cell.kind for cell in placed))
    layers = sorted({cell.layer for cell in placed if cell.layer is not None})
    width = (WIDTH - LEFT) / max(len(kinds), 1)
    height = TOP + CELL_HEIGHT * len(layers) + KEY
    values = [cell.value for cell in placed if cell.value > 0]
    low, high = (min(values), max(values)) if values else (1.0, 1.0)
    marks = [
        f'<text x="{LEFT + (place + 0.5) * width:.1f}" y="{TOP - 8}" text-anchor="middle">{escape(kind)}</text>'
        for place, kind in enumerate(kinds)
    ]
    for row, layer in enumerate(layers):
        y = TOP + row * CELL_HEIGHT + CELL_HEIGHT * 0.75
        marks.append(f'<text x="{LEFT - 8}" y="{y:.1f}" text-anchor="end">{layer}</text>')
    for cell in placed:
        assert cell.layer is not None
        place = LEFT + kinds.index(cell.kind) * width, TOP + layers.index(cell.layer) * CELL_HEIGHT
        marks.append(_cell(cell, place, width, _strength(cell.value, low, high)))
    marks += _key(low, high, TOP + CELL_HEIGHT * len(layers) + 14)
    names = f"{name}-title {name}-description"
    return "\n".join(
        [
            f'<svg class="heat" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="{names}">',
            f'<title id="{name}-title">{escape(title)}</title>',
            f'<desc id="{name}-description">{escape(described)}</desc>',
            *marks,
            "</svg>",
        ]
    )


def _cell(cell: Cell, place: tuple[float, float], width: float, strength: float) -> str:
    x, y = place
    box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{width - 2:.1f}" height="{CELL_HEIGHT - 2}"'
    label = f"{', '.join(cell.linears)}: {cell.value:.3g}{', stays in float' if cell.is_kept else ''}"
    frame = f'<rect class="kept" {box}/>' if cell.is_kept else ""
    return f'<g><title>{escape(label)}</title><rect class="cell" {box} fill-opacity="{strength:.3f}"/>{frame}</g>'


def _strength(value: float, low: float, high: float) -> float:
    """Opacity, 0.06 to 1."""
    if value <= 0 or high <= low:
        return 0.06
    return 0.06 + 0.94 * math.log(value / low) / math.log(high / low)


def _key(low: float, high: float, y: float) -> list[str]:
    """What the colours stand for."""
    steps = 24
    bars = [
        f'<rect class="cell" x="{LEFT + step * 8}" y="{y}" width="8" height="10" '
        f'fill-opacity="{0.06 + 0.94 * step / (steps - 1):.3f}"/>'
        for step in range(steps)
    ]
    right = LEFT + steps * 8
    return [
        *bars,
        f'<text x="{LEFT}" y="{y + 24}">{low:.2g}</text>',
        f'<text x="{right}" y="{y + 24}" text-anchor="end">{high:.2g}</text>',
        f'<rect class="kept" x="{right + 24}" y="{y}" width="24" height="10"/>',
        f'<text x="{right + 56}" y="{y + 9}">stays in float</text>',
    ]
