"""The `calibrate` verb."""

import argparse
import json
from pathlib import Path
from typing import get_args

from piston.calibration.calibrate import Calibrated, calibrate
from piston.calibration.data import RowOptions
from piston.calibration.observers import Method
from piston.calibration.recipe import ROUNDINGS, SCHEMES, Recipe
from piston.runtime.console import Progress, print_json, print_text
from piston.runtime.errors import MisuseError

W4_BLOCK = 128
SHOWN = 5  # of the most sensitive linears
CHANGES = ("scheme", "block", "rounding", "method", "no_smooth", "keep", "keep_worst")  # what a recipe decides


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston calibrate`."""
    parser.add_argument("model_dir", metavar="DIR", type=Path, help="the model directory `piston export` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument(
        "--data", action="append", default=[], metavar="FILE", help="text, JSONL or ids; or builtin (repeatable)"
    )
    parser.add_argument("--field", metavar="NAME", help="of JSONL objects: where the text is")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="rows to run (default 64)")
    parser.add_argument("--seq-len", type=int, default=512, metavar="N", help="tokens of a row (default 512)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the packing (default 0)")
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", type=Path, metavar="FILE", help="replay a recipe (JSON), instead of what follows")
    recipe.add_argument("--scheme", choices=SCHEMES, help="what becomes integer")
    recipe.add_argument("--block", type=int, metavar="N", help="inputs that share a scale (w4: 128; 0: whole channels)")
    recipe.add_argument("--rounding", choices=ROUNDINGS, help="of weights (w4: gptq, else nearest)")
    recipe.add_argument("--method", choices=get_args(Method), help="activation range (default minmax)")
    recipe.add_argument("--no-smooth", action="store_true", help="leave activation outliers where they are")
    recipe.add_argument("--keep", action="append", default=[], metavar="PATTERN", help="linears to leave in float")
    recipe.add_argument("--keep-worst", type=int, default=0, metavar="N", help="leave the N most sensitive in float")
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, and print what became integer and what did not."""
    result = calibrate(
        arguments.model_dir,
        arguments.output,
        recipe_of(arguments),
        arguments.data,
        rows=RowOptions(
            num_rows=arguments.samples, seq_len=arguments.seq_len, seed=arguments.seed, field=arguments.field
        ),
        keep_worst=arguments.keep_worst,
        overwrite=arguments.overwrite,
        progress=Progress(quiet=arguments.quiet),
    )
    if arguments.json:
        print_json(to_json(arguments.output, result))
        return 0
    size = sum(record.size for record in result.manifest.files.values())
    print_text(
        f"{arguments.output}: {result.manifest.model.scheme}, {len(result.quantized)} linears quantized, "
        f"{len(result.kept)} in float, {size / 1e6:,.0f} MB"
    )
    for name, error in list(result.sensitivity.items())[:SHOWN]:
        state = "kept in float" if name in result.kept else "quantized"
        print_text(f"  {name}: INT8 moves its output by {error**0.5:.1%}, {state}")
    return 0


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe file, or the options as one.

    Raises:
        MisuseError: neither or both, a file that is none, or options that contradict each other.
    """
    if arguments.recipe is not None:
        if given := [name for name in CHANGES if getattr(arguments, name) not in (None, False, 0, [])]:
            raise MisuseError(f"--recipe replays a file; --{given[0].replace('_', '-')} would change it.")
        try:
            return Recipe.from_json(json.loads(arguments.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError) as problem:
            raise MisuseError(f"{arguments.recipe} is no recipe: {problem}") from None
    if arguments.scheme is None:
        raise MisuseError(f"Give --scheme ({', '.join(SCHEMES)}) or --recipe FILE.")
    is_w4 = arguments.scheme == "w4"
    block = arguments.block if arguments.block is not None else (W4_BLOCK if is_w4 else 0)
    return Recipe(
        scheme=arguments.scheme,
        block=block,
        rounding=arguments.rounding or ("gptq" if is_w4 else "nearest"),
        method=arguments.method or "minmax",
        smooth=not arguments.no_smooth,
        keep=tuple(arguments.keep),
    )


def to_json(output: Path, result: Calibrated) -> dict[str, object]:
    """For --json."""
    return {
        "output": str(output),
        "scheme": result.manifest.model.scheme,
        "quantized": result.quantized,
        "kept": result.kept,
        "sensitivity": result.sensitivity,
        "calibration": result.manifest.made_by["calibration"],
    }
