"""What commands read from standard input, or from a file that an option names; nothing at all is refused."""

import sys
from io import TextIOWrapper
from pathlib import Path

from piston.core.console import reading_input
from piston.core.data_files import BYTE_ORDER_MARK, check_text, read_text
from piston.core.errors import MisuseError

DASH = "-"  # as the value of an option: read standard input


def text_of(value: str | None, file: Path | None = None) -> str:
    """The text of an option: that of a file if one is given, else the value, or standard input for -.

    Line ends stay as they are.

    Raises:
        MisuseError: file or standard input cannot be read, or hold no text.
    """
    if file is not None:
        return _checked(read_text(file), str(file))
    return read_standard_input() if value == DASH else str(value)


def read_standard_input() -> str:
    """The text of standard input without its byte order mark; raises as `text_of`."""
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(newline="")
    with reading_input():
        text = sys.stdin.read()
    return _checked(check_text(text.removeprefix(BYTE_ORDER_MARK), "Standard input"), "Standard input")


def read_standard_input_bytes() -> bytes:
    """The bytes of standard input; raises MisuseError if it cannot be read, or has none."""
    with reading_input():
        data = sys.stdin.buffer.read()
    if not data:
        raise MisuseError("Standard input is empty; send data to it, or name a file instead of -.")
    return data


def _checked(text: str, name: str) -> str:
    if not text.strip():
        raise MisuseError(f"{name} has no text; write some to it, or give the text as an argument.")
    return text
