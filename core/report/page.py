"""Pages of figures: one style, no script, nothing loaded from anywhere. Text is escaped unless it is Markup."""

import functools
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from piston.core.gates import GateResult

NUMBERS = "The numbers as a table"


class Tile(NamedTuple):
    """A headline figure."""

    label: str
    value: str
    note: str = ""


def page(title: str, tiles: Sequence[Tile], parts: Iterable[Markup], footer: str, lead: Sequence[Markup] = ()) -> str:
    """The whole document: the title, what it is about, the headline figures, and the parts."""
    template = _environment().get_template("page.html")
    return template.render(title=title, tiles=tiles, parts=parts, footer=footer, lead=lead)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> Markup:
    """A table; the first cell of a row is its head, the columns in `numbers` are aligned to the right."""
    return _part("table", heads, list(rows), numbers)


def details(heads: Sequence[str], rows: Iterable[Sequence[str]], summary: str = NUMBERS) -> Markup:
    """A folded table with the numbers of a chart, for readers who cannot see it or want the numbers."""
    return _part("details", heads, list(rows), summary)


def figure(heading: str, svg: Markup, caption: str, numbers: Markup | None = None) -> Markup:
    """A chart with its heading, a caption, and its numbers."""
    return _part("figure", heading, svg, caption, numbers or Markup())


def gates(results: Sequence[GateResult]) -> list[Markup]:
    """The verdicts below a heading; nothing where there are none."""
    return [_part("gates", results)] if results else []


def legend(entries: Iterable[tuple[str, str]]) -> Markup:
    """A line in its style before each name; entries are (name, style)."""
    return _part("legend", list(entries))


def stack(shares: Iterable[tuple[str, float]]) -> Markup:
    """A stacked bar of parts of a whole; shares are (style, part)."""
    return _part("stack", list(shares))


def swatches(entries: Iterable[tuple[str, str]]) -> Markup:
    """What the styles of a stack stand for; entries are (name, style)."""
    return _part("swatches", list(entries))


def heading(text: str) -> Markup:
    """A heading of the second level."""
    return Markup("<h2>{}</h2>").format(text)


def paragraph(text: str, style: str = "") -> Markup:
    """A paragraph in a style of the page."""
    return Markup('<p class="{}">{}</p>').format(style, text) if style else Markup("<p>{}</p>").format(text)


def _part(name: str, *arguments: Any) -> Markup:
    return Markup(getattr(_environment().get_template("parts.html").module, name)(*arguments))  # noqa: S704 - autoescaped


@functools.cache
def _environment() -> Environment:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
