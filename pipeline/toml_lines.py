"""On which line of a TOML file a value stands, which `tomllib` does not tell."""

import tomllib
from typing import Any

from piston.core.schema import Path

MAX_LINES = 500  # finding a line parses every beginning of the file


def line_of(text: str, path: Path) -> int:
    """The line, from 1, where the value at `path` begins; of what is not there, the line of what should hold it.

    The shortest beginning of the file that is whole TOML and has the value ends on the value's last line, and the one
    before it ends before its first.
    """
    for length in range(len(path), 0, -1):
        if (line := _first_line(text, path[:length])) is not None:
            return line
    return 1


def _first_line(text: str, path: Path) -> int | None:
    lines = text.split("\n")
    before = 0  # the last line that ends a beginning without the value
    for count in range(1, len(lines) + 1):
        try:
            value = tomllib.loads("\n".join(lines[:count]) + "\n")
        except (ValueError, RecursionError):  # within an array or a string of several lines
            continue
        if _has(value, path):
            return _skip_blank(lines, before, count) + _offset(lines[before:count], path)
        before = count
    return None


def _has(value: Any, path: Path) -> bool:
    for part in path:
        if isinstance(part, int):
            if not (isinstance(value, list) and part < len(value)):
                return False
        elif not (isinstance(value, dict) and part in value):
            return False
        value = value[part]
    return True


def _skip_blank(lines: list[str], start: int, stop: int) -> int:
    for number in range(start, stop):
        if lines[number].strip() and not lines[number].strip().startswith("#"):
            return number + 1
    return stop


def _offset(statement: list[str], path: Path) -> int:
    """Within an array with an item a line: the line of the item; else the first."""
    body = [line for line in statement if line.strip() and not line.strip().startswith("#")]
    if not isinstance(path[-1], int) or len(body) < path[-1] + 2:
        return 0
    first = next(index for index, line in enumerate(statement) if line in body)
    items = [index for index, line in enumerate(statement) if line in body[1:]]
    return items[path[-1]] - first
