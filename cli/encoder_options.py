"""Options of `piston run` that the tasks of encoders share."""

import argparse
from collections.abc import Iterable

from piston.core.data_files import lines_of
from piston.core.standard_input import DASH, read_standard_input


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
    """The texts of a repeatable option; for - the lines of standard input that are not empty, of which it must have."""
    return [text for item in given for text in (lines_of(read_standard_input()) if item == DASH else [item])]
