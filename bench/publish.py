"""Writes a report: to the terminal or as JSON, and to the requested files."""

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
from piston.core.outputs import check_output_files, write_output

_WRITERS = {"html": page_of, "junit": junit_of, "markdown": markdown_of}


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare --json and the files."""
    parser.add_argument("--json", action="store_true", help="print one JSON object (docs/schemas/bench.json)")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with plots")
    parser.add_argument("--junit", metavar="FILE", type=Path, help="write the gates as JUnit XML")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write tables for a pull request's comment")


def check_outputs(arguments: argparse.Namespace) -> None:
    """Refuse output files that cannot be written or are inputs, before an hour of measuring; raises MisuseError."""
    reads = [*arguments.bundle, arguments.prompts, arguments.baseline, arguments.rivals]
    places = [arguments.checkpoint, arguments.serve, *(text.partition(":")[2] for text in arguments.against)]
    reads += [Path(place) for place in places if place]  # an address of a server is no path that exists
    check_output_files({f"--{name}": getattr(arguments, name) for name in _WRITERS}, reads)
    if arguments.junit is not None and not (arguments.require or arguments.fail_on):
        raise MisuseError("--junit writes the verdicts of gates; give --require.")


def publish(report: Report, arguments: argparse.Namespace) -> int:
    """Write everything; 1 where a gate is not met."""
    try:
        for name, written in _WRITERS.items():
            path = getattr(arguments, name)
            if path is not None:
                write_output(path, written(report))
    finally:  # the figures are printed even if a file cannot be written
        _print(report, as_json=arguments.json)
    return tell_gates(report.gates)


def _print(report: Report, *, as_json: bool) -> None:
    if as_json:
        print_json(report.to_json())
        return
    for line in lines_of(report):
        print_text(line)
    if report.profile is not None:
        print_text("")
        for line in profile_lines(report.profile):
            print_text(line)
