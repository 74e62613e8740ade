"""Text and tables as Markdown, for comments and summaries of code hosts."""

from collections.abc import Iterable, Iterator, Sequence

from markupsafe import Markup


def text(value: str) -> str:
    """Text on one line, escaped for HTML and for table cells; Markup stays unchanged."""
    if not isinstance(value, Markup):
        value = value.replace("&", "&amp;").replace("<", "&lt;")
    return " ".join(str(value).replace("|", "\\|").split())


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a table, and an empty one after it."""
    for row in (heads, ["---"] * len(heads), *rows):
        yield f"| {' | '.join(map(text, row))} |"
    yield ""
