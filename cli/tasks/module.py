"""`piston run` on a module of one's own: arrays from an .npz file in, arrays out."""

import argparse
from pathlib import Path
from typing import Any

from piston.cli.shared_options import load_from
from piston.core.arrays import npz_of, read_arrays
from piston.core.console import print_json, print_text
from piston.core.outputs import check_output_files, write_output

TASK = "module"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what is asked, and how."""
    parser.add_argument(
        "--input", metavar="FILE", type=Path, required=True, help="an .npz file with an array for each input"
    )
    parser.add_argument("--output", metavar="FILE", type=Path, help="write the outputs to an .npz file")
    parser.add_argument("--json", action="store_true", help="print one JSON object with the whole outputs")


def run(arguments: argparse.Namespace) -> int:
    """Run the module once."""
    check_output_files({"--output": arguments.output}, [arguments.input, arguments.bundle, arguments.public_key])
    feeds = read_arrays(arguments.input)
    with load_from(arguments, TASK) as model:
        outputs = model.run(feeds)
    if arguments.output is not None:
        write_output(arguments.output, npz_of(outputs))
    if arguments.json:
        print_json({name: array.tolist() for name, array in outputs.items()})
        return 0
    for name, array in outputs.items():
        print_text(f"{name} {array.dtype} {list(array.shape)}: {shown(array)}")
    return 0


def shown(array: Any) -> str:
    """The first numbers of an array, for people."""
    flat = array.reshape(-1)
    numbers = ", ".join(f"{value:.6g}" if array.dtype.kind == "f" else str(value) for value in flat[:8].tolist())
    return f"[{numbers}{', ...' if flat.size > 8 else ''}]"  # noqa: PLR2004
