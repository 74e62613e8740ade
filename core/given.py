"""Options of a command line that were given, by their defaults."""

import argparse
from collections.abc import Mapping
from typing import Any


def given_option(arguments: argparse.Namespace, defaults: Mapping[str, Any]) -> str | None:
    """The first of the options, such as `--max-length`, whose value is not its default; None if there is none."""
    values = vars(arguments)
    return next(
        (option for option, default in defaults.items() if values[option[2:].replace("-", "_")] != default), None
    )
