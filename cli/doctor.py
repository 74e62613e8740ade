"""The `doctor` verb: finds what is missing or wrong on this machine or with a path, and how to fix it."""

import argparse
import dataclasses
from pathlib import Path

from piston.cli.checks.machine import examine_machine
from piston.cli.checks.path import examine_path
from piston.core.console import print_json, print_text

HEALTHY, ILL = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston doctor`."""
    parser.add_argument(
        "path",
        metavar="PATH",
        type=Path,
        nargs="?",
        help="a bundle, model directory, checkpoint, plan or ONNX file (default: check this machine)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the findings; the exit status is 1 if something is wrong."""
    findings = examine_machine() if arguments.path is None else examine_path(arguments.path)
    is_ill = any(finding.level == "wrong" for finding in findings)
    if arguments.json:
        print_json({"healthy": not is_ill, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            for line in finding.lines():
                print_text(line)
    return ILL if is_ill else HEALTHY
