"""The options of `piston calibrate` that say how to quantize, as a recipe and a budget."""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from piston.calibration.observe.observers import Method
from piston.calibration.recipe import GRANULARITIES, PRUNINGS, ROUNDINGS, SCHEMES, Recipe, Storage
from piston.calibration.search.budget import Budget
from piston.core.errors import MisuseError
from piston.core.gates import Metric, from_older
from piston.evaluation.tasks.text_generation import METRICS

W4_BLOCK = 128
SECONDS = {"s": 1, "m": 60, "h": 3600}
CHANGES = (
    *("scheme", "block", "rounding", "method", "no_smooth", "no_remainder", "outliers", "keep", "kept", "keep_worst"),
    *("int8", "split", "sparsity", "dense", "pruning", "embedding", "head", "kv", "kv_granularity", "budget"),
)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Declare them; the group, for more."""
    recipe = parser.add_argument_group("recipe")
    recipe.add_argument("--recipe", type=Path, metavar="FILE", help="replay a recipe (JSON), instead of what follows")
    recipe.add_argument("--scheme", choices=SCHEMES, help="what becomes integer (fp: the cache alone)")
    recipe.add_argument("--block", type=int, metavar="N", help="inputs that share a scale (w4: 128; 0: whole channels)")
    recipe.add_argument("--rounding", choices=ROUNDINGS, help="of weights (w4: gptq, else nearest)")
    recipe.add_argument("--method", choices=get_args(Method), help="activation range (default minmax)")
    recipe.add_argument("--no-smooth", action="store_true", help="leave activation outliers where they are")
    recipe.add_argument(
        "--no-remainder",
        action="store_true",
        help="w8a8: do not round what a scale leaves over once more, by a coarser one",
    )
    recipe.add_argument(
        "--outliers",
        type=int,
        metavar="N",
        help="w8a8: inputs of linears behind an activation function to leave in float (default 0)",
    )
    recipe.add_argument("--keep", action="append", default=[], metavar="PATTERN", help="linears to leave in float")
    recipe.add_argument(
        "--kept", choices=get_args(Storage), help="how weights of linears kept are stored (w8a8: int8; else float)"
    )
    recipe.add_argument(
        "--int8",
        action="append",
        default=[],
        metavar="PATTERN",
        help="w4: linears to give eight bits, or none (default: those with a third as many outputs as inputs or fewer, "
        "and those behind an activation function in the first and last tenth of the layers)",
    )
    recipe.add_argument(
        "--split",
        type=int,
        metavar="N",
        help="gptq: copies of large inputs behind norms, 0 for none (default: what fills the last block)",
    )
    recipe.add_argument("--sparsity", choices=("2:4",), help="make two of every four weights of an output zero")
    recipe.add_argument("--dense", action="append", default=[], metavar="PATTERN", help="linears not to make sparse")
    recipe.add_argument("--pruning", choices=PRUNINGS, help="which weights become zero (default sparsegpt)")
    recipe.add_argument("--embedding", choices=get_args(Storage), help="how its table is stored (default float)")
    recipe.add_argument("--head", choices=get_args(Storage), help="how lm_head is stored (default float)")
    recipe.add_argument("--keep-worst", type=int, metavar="N", help="compute the N most sensitive in float")
    recipe.add_argument(
        "--budget",
        metavar="GATE",
        help="leave as little in float as a gate allows: ppl<=2%%, kl<=0.02, accuracy>=-0.5%%, cosine>=0.99",
    )
    recipe.add_argument("--budget-time", default="10m", metavar="TIME", help="to search in: 90s, 10m (default), 1h")
    recipe.add_argument("--kv", choices=("int8",), help="round keys and values to INT8 before they are cached")
    recipe.add_argument(
        "--kv-granularity", choices=GRANULARITIES, help="a scale for each channel (default), or for a whole tensor"
    )
    return recipe


def budget_of(arguments: argparse.Namespace, metrics: Mapping[str, Metric] = METRICS) -> Budget | None:
    """The bound, on a figure of the task, and the time; raises MisuseError for what is neither."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", arguments.budget_time)
    if match is None or not float(match[1]):
        raise MisuseError(f"--budget-time {arguments.budget_time!r} is no time; write it as 90s, 10m or 1h.")
    if arguments.budget is None:
        return None
    (bound,) = from_older("--budget", [arguments.budget], metrics, "--budget")
    return Budget(bound=bound, seconds=float(match[1]) * SECONDS[match[2]])


def recipe_of(arguments: argparse.Namespace) -> Recipe:
    """The recipe file, or the options as one.

    Raises:
        MisuseError: neither or both, a file that is none, or options that contradict each other.
    """
    if arguments.recipe is not None:
        if given := [name for name in CHANGES if _is_given(getattr(arguments, name))]:
            raise MisuseError(f"--recipe replays a file; --{given[0].replace('_', '-')} would change it.")
        try:
            return Recipe.from_json(json.loads(arguments.recipe.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as problem:
            raise MisuseError(f"{arguments.recipe} is no recipe: {problem}") from None
    if arguments.kv_granularity is not None and arguments.kv is None:
        raise MisuseError("--kv-granularity is of an INT8 cache; add --kv int8.")
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
        outliers=arguments.outliers or 0,
        remainder=not arguments.no_remainder,
        keep=tuple(arguments.keep),
        kept=arguments.kept,
        int8=_int8(arguments.int8),
        split=arguments.split,
        sparsity=arguments.sparsity or "",
        dense=tuple(arguments.dense),
        pruning=arguments.pruning or "sparsegpt",
        embedding=arguments.embedding or "float",
        head=arguments.head or "float",
        kv=arguments.kv or "float",
        kv_granularity=arguments.kv_granularity or "channel",
    )


def _is_given(value: object) -> bool:
    """A number may be given as 0, which is equal to False."""
    return value is not None and value is not False and value != []


def _int8(given: list[str]) -> tuple[str, ...] | None:
    """None where nothing was said, which lets the recipe choose."""
    if "none" in given and len(given) > 1:
        raise MisuseError("--int8 none leaves no linear eight bits; leave the other patterns out.")
    return tuple(pattern for pattern in given if pattern != "none") if given else None
