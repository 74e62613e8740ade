"""Where a report goes: terminal or JSON, and the files that were asked for."""

import argparse
from pathlib import Path

from piston.bench.markdown import junit_of, markdown_of
from piston.bench.page import page_of
from piston.bench.report import Report
from piston.bench.roofline import profile_lines
from piston.bench.table import lines_of
from piston.core.console import print_json, print_text
from piston.core.errors import MisuseError
from piston.core.gates import tell_gates

_WRITERS = {"html": page_of, "junit": junit_of, "markdown": markdown_of}


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --json and the files."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/schemas/bench.json)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write the gates as JUnit XML")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write tables for a pull request's comment")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse a file that could not be written, before an hour of measuring; raises MisuseError."""
    for name in _WRITERS:
        path = getattr(arguments, name)
        if path is not None and not path.absolute().parent.is_dir():
            raise MisuseError(f"--{name} {path}: there is no directory {path.absolute().parent}.")
    if arguments.junit is not None and not (arguments.require or arguments.fail_on):
        raise MisuseError("--junit holds the verdicts of gates; give --require.")


def publish(report: Report, arguments: argparse.Namespace) -> int:
    """Write everything; 1 where a gate is not met."""
    for name, written in _WRITERS.items():
        path = getattr(arguments, name)
        if path is not None:
            path.write_text(written(report), encoding="utf-8")
    if arguments.json:
        print_json(report.to_json())
    else:
        for line in lines_of(report):
            print_text(line)
        if report.profile is not None:
            print_text("")
            for line in profile_lines(report.profile):
                print_text(line)
    return tell_gates(report.gates)
