"""Options of `piston run` that the tasks of encoders share."""

import argparse
import sys
from collections.abc import Iterable

from piston.core.console import reading_input
from piston.core.data_files import BYTE_ORDER_MARK, check_text, lines_of


def add_text_arguments(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Declare --text; `purpose` is what happens to the texts."""
    parser.add_argument(
        "--text",
        action="append",
        required=True,
        metavar="TEXT",
        help=f"what to {purpose}, repeatable; - reads standard input, a text a line",
    )


def add_truncate_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --truncate."""
    parser.add_argument("--truncate", action="store_true", help="cut texts that are too long; else they are refused")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """Declare --json."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def texts_of(given: Iterable[str]) -> list[str]:
    """The texts of a repeatable option, with those of standard input for -."""
    return [text for item in given for text in (_lines() if item == "-" else [item])]


def _lines() -> list[str]:
    """Texts of standard input; empty lines are none."""
    with reading_input():
        read = check_text(sys.stdin.read().removeprefix(BYTE_ORDER_MARK), "Standard input")
    return lines_of(read)
