"""What changed between two models as lines of text, and as one page."""

from collections.abc import Iterator

from markupsafe import Markup

from piston.core.report.page import Tile, heading, page, paragraph, table
from piston.evaluation.diff import Change, Diff, word_diff

_MARKS = {"same": ("", ""), "removed": ("[-", "-]"), "added": ("{+", "+}")}  # as `git diff --word-diff` writes them
_TAGS = {"same": Markup("{}"), "removed": Markup("<del>{}</del>"), "added": Markup("<ins>{}</ins>")}
_WIDTH = 78  # characters of an input in a line


def lines_of(diff: Diff, before: str, after: str, limit: int) -> Iterator[str]:
    """The figures, then the `limit` changes to look at first."""
    yield f"{diff.num_changed:,} of {diff.num_records:,} records changed from {before} to {after}"
    for name, value, meaning in diff.figures:
        yield f"{name:<16}{value:8.2%}  {meaning}"
    for change in diff.changes[:limit]:
        yield ""
        yield f"record {change.record}: {_one_line(change.text)}"
        yield f"  {change.note}"
        marked = "".join(
            f"{_MARKS[kind][0]}{text}{_MARKS[kind][1]}" for kind, text in word_diff(change.before, change.after)
        )
        yield from (f"  {line}" for line in marked.splitlines())
    if (rest := diff.num_changed - limit) > 0:
        yield ""
        yield f"{rest:,} more changes; --limit shows more, --html and --json all of them"


def page_of(diff: Diff, before: str, after: str, piston: str) -> str:
    """The whole document."""
    tiles = [Tile("changed", f"{diff.num_changed:,} of {diff.num_records:,}", "records")]
    tiles += [Tile(name, f"{value:.2%}", meaning) for name, value, meaning in diff.figures]
    rows = [_row(change) for change in diff.changes]
    parts = [heading("Changes, the largest first")]
    parts.append(
        table(["record", "given", "result, before and after", ""], rows) if rows else paragraph("Nothing changed.")
    )
    lead = [paragraph(f"{diff.task}: from {before} to {after}.")]
    return page(f"{before} and {after}: what changed", tiles, parts, f"Written by piston diff, Piston {piston}.", lead)


def _row(change: Change) -> tuple[str, str, Markup, str]:
    words = Markup().join(_TAGS[kind].format(text) for kind, text in word_diff(change.before, change.after))
    return str(change.record), change.text, Markup('<span class="words">{}</span>').format(words), change.note


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _WIDTH else f"{line[: _WIDTH - 3]}..."
