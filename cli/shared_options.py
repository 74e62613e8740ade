"""Options that several verbs share."""

import argparse
from pathlib import Path
from typing import Any

from piston.core.bundle.manifest import Manifest
from piston.core.console import LOG_FORMAT, LOG_FORMATS, note
from piston.runtime.model import load


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `load`."""
    parser.add_argument("bundle", metavar="BUNDLE", type=Path, help="the directory `piston build` wrote")
    parser.add_argument("--target", help="which engine of the bundle")
    parser.add_argument("--max-length", type=int, metavar="N", help="positions to hold (default: as built)")
    parser.add_argument("--max-batch", type=int, metavar="N", help="rows decoded together (default: as built)")
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="threads of the engine (default: the physical cores)"
    )
    parser.add_argument("--public-key", type=Path, metavar="FILE", help="load only a bundle signed with this key")
    parser.add_argument("--quiet", action="store_true", help="no speed report on stderr")


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what every verb takes."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.add_argument(
        "--log-format",
        choices=LOG_FORMATS,
        help=f"format of progress and errors on stderr (default: ${LOG_FORMAT}, or text)",
    )


def load_from(arguments: argparse.Namespace, task: str) -> Any:
    """Load as the options say, and tell what was done otherwise; raises MisuseError for a bundle of another task."""
    Manifest.read(arguments.bundle).require_task(task, arguments.bundle)
    model = load(
        arguments.bundle,
        target=arguments.target,
        max_batch=arguments.max_batch,
        max_length=arguments.max_length,
        threads=arguments.threads,
        public_key=arguments.public_key,
    )
    for remark in () if arguments.quiet else model.remarks:
        note(remark)
    return model
