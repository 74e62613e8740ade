"""The `plan` verb: how much memory a model takes, and the largest batch x length that fits. Loads nothing."""

import argparse
from pathlib import Path
from typing import Any

from piston.cli.plan_memory import DEVICE_TARGETS, TARGETS, Footprint, Planned, planned
from piston.core.bundle.manifest import Manifest
from piston.core.console import print_json, print_text
from piston.core.errors import MisuseError
from piston.core.units import parse_size
from piston.runtime.backends.registry import family_of

BAR = 48  # characters of the picture
MARKS = {"weights": "#", "cache": "=", "activations": "+", "process": "o", "context": "o"}
FITS, TOO_LARGE = 0, 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston plan`."""
    parser.add_argument("path", metavar="PATH", type=Path, help="a model directory or a bundle")
    parser.add_argument("--memory", metavar="SIZE", required=True, help="memory of the process, such as 24GiB")
    parser.add_argument("--target", choices=TARGETS, default=TARGETS[0], help=f"default: {TARGETS[0]}")
    parser.add_argument(
        "--batch", type=int, metavar="N", help="rows decoded, or texts read, together; with --length: does it fit?"
    )
    parser.add_argument("--length", type=int, metavar="N", help="positions of each row")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Print the plan; the exit status is 1 if the requested sizes do not fit."""
    for name in ("batch", "length"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            raise MisuseError(f"--{name} is {value}; it must be at least 1.")
    memory = parse_size(arguments.memory, "--memory")
    plan = planned(arguments.path, Manifest.read(arguments.path), arguments.target)
    if (arguments.length or 0) > plan.max_positions:
        raise MisuseError(f"--length is {arguments.length:,}; the model has {plan.max_positions:,} positions.")
    if plan.max_batch is not None and (arguments.batch or 0) > plan.max_batch:
        raise MisuseError(f"--batch is {arguments.batch:,}; {plan.target} was built for {plan.max_batch:,} rows.")
    shown = _shown(plan, memory, arguments.batch, arguments.length)
    table = {length: plan.largest_batch(length, memory) for length in lengths_of(plan.max_positions)}
    if arguments.json:
        print_json(_to_json(plan, memory, shown, table))
    else:
        for line in describe(plan, arguments.memory, memory, shown, table):
            print_text(line)
    return FITS if shown.total <= memory else TOO_LARGE


def lengths_of(max_positions: int) -> list[int]:
    """The lengths of the table: the model's own and its halves, down to 256."""
    lengths = [max_positions]
    while lengths[-1] // 2 >= 256 and len(lengths) < 6:  # noqa: PLR2004
        lengths.append(lengths[-1] // 2)
    return lengths


def describe(plan: Planned, where: str, memory: int, shown: Footprint, table: dict[int, int]) -> list[str]:
    """The plan as text: one footprint as a bar, then the largest batch for each length."""
    width = max(memory, shown.total)
    bar = "".join(MARKS[name] * round(BAR * size / width) for name, size in shown.parts().items())
    verdict = f"{_size(memory - shown.total)} free" if shown.total <= memory else "DOES NOT FIT"
    lines = [
        f"{plan.target} in {where}: {_size(memory)} usable",
        f"batch {shown.batch}, length {shown.length:,}: {_size(shown.total)}, {verdict}",
        f"[{bar.ljust(BAR, '.')[: max(BAR, len(bar))]}]",
    ]
    lines += [f"  {MARKS[name]} {name:12} {_size(size):>10}" for name, size in shown.parts().items()]
    lines += ["largest batch:"]
    lines += [f"  length {length:>9,}   {batch or 'none fits'}" for length, batch in table.items()]
    if family_of(plan.target) in DEVICE_TARGETS:
        lines += ["Predicted; never compared with a GPU yet. Context and activations are assumptions."]
    return lines


def _shown(plan: Planned, memory: int, batch: int | None, length: int | None) -> Footprint:
    """The requested footprint, or the largest that fits: first the length of one row, then the number of rows."""
    if length is None:
        length = plan.largest_length(batch or 1, memory) or min(256, plan.max_positions)
    return plan.at(batch or plan.largest_batch(length, memory) or 1, length)


def _to_json(plan: Planned, memory: int, shown: Footprint, table: dict[int, int]) -> dict[str, Any]:
    return {
        "target": plan.target,
        "memory_bytes": memory,
        "batch": shown.batch,
        "length": shown.length,
        "fits": shown.total <= memory,
        "bytes": {**shown.parts(), "total": shown.total},
        "largest_batch": {str(length): batch for length, batch in table.items()},
    }


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.2f} GB" if nbytes >= 10**9 else f"{nbytes / 1e6:,.0f} MB"
