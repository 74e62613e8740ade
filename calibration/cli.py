"""The `calibrate` verb."""

import argparse
import dataclasses
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions, bounds_of, evaluation_of
from piston.calibration.observe.observers import Method
from piston.calibration.recipe import GRANULARITIES, PRUNINGS, ROUNDINGS, SCHEMES, Recipe, Storage
from piston.calibration.refusals import check_options, check_searches
from piston.calibration.report import page_of, remainders_text
from piston.calibration.result import Calibrated
from piston.calibration.search.budget import Budget
from piston.calibration.verdict import verdict_of
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.gates import Metric, add_gate_arguments, from_older, gates_of
from piston.core.json_text import json_text
from piston.core.outputs import check_output_files, write_output
from piston.core.tasks import task_module, task_names
from piston.data.rows import RowOptions
from piston.evaluation import tasks
from piston.evaluation.tasks.text_generation import METRICS
from piston.graph.trained_scales import TrainedScales

W4_BLOCK = 128
SHOWN = 5  # of the most sensitive linears
CHANGES = (
    *("scheme", "block", "rounding", "method", "no_smooth", "no_remainder", "outliers", "keep", "kept", "keep_worst"),
    *("int8", "split", "sparsity", "dense", "pruning", "embedding", "head", "kv", "kv_granularity", "budget"),
)
SECONDS = {"s": 1, "m": 60, "h": 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston calibrate`."""
    parser.add_argument("model_dir", metavar="DIR", type=Path, help="the model directory `piston export` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="the model directory to write")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="text, JSONL or ids, or builtin; of a module of your own .npz files of its inputs (repeatable)",
    )
    parser.add_argument("--field", metavar="NAME", help="of objects and tables: where the text is")
    parser.add_argument(
        "--samples", type=int, metavar="N", help="rows to run (default 64; of a module all but those for the check)"
    )
    parser.add_argument("--seq-len", type=int, metavar="N", help="tokens of a row (default 512, at most the model's)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the packing (default 0)")
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
    recipe.add_argument("--save-recipe", type=Path, metavar="FILE", help="write the recipe, with what was measured")
    recipe.add_argument("--report", type=Path, metavar="FILE", help="write a page with charts (HTML)")
    checked = parser.add_argument_group("check", "the result is compared with the float model before it is kept")
    add_gate_arguments(checked, _examples(), "--check")
    checked.add_argument("--check-data", type=Path, metavar="FILE", help="text for it (default: rows of --data)")
    checked.add_argument(
        "--labelled",
        type=Path,
        metavar="FILE",
        help="labelled examples to measure both models on: accuracy, f1, ndcg, ... (docs/tasks.md)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the output if it exists")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Calibrate, and print what became integer and what did not."""
    check_output_files(
        {"--report": arguments.report, "--save-recipe": arguments.save_recipe},
        [
            arguments.model_dir,
            arguments.output,
            arguments.recipe,
            arguments.check_data,
            arguments.labelled,
            *arguments.data,
        ],
    )
    task = Manifest.read(arguments.model_dir).task
    recipe, budget, bounds = _asked(arguments, task)
    result = calibrate(
        arguments.model_dir,
        arguments.output,
        recipe,
        arguments.data,
        rows=_rows_of(arguments),
        keep_worst=arguments.keep_worst or 0,
        budget=budget,
        checked=CheckOptions(
            bounds=bounds,
            data=arguments.check_data,
            labelled=arguments.labelled,
        ),
        trained=TrainedScales.beside(arguments.recipe, recipe.trained) if recipe.trained else None,
        count_saturations=arguments.report is not None,
        overwrite=arguments.overwrite,
        progress=Progress(quiet=arguments.quiet),
    )
    try:
        if arguments.save_recipe is not None:
            write_output(arguments.save_recipe, json_text(result.recipe.to_json(), indent=1) + "\n")
        if arguments.report is not None:
            write_output(arguments.report, page_of(result))
    finally:  # what was measured is told all the same
        for warning in (result.data_warning, result.check.held_out.warning):
            if warning is not None:
                note(warning)
        if arguments.json:
            print_json(to_json(arguments.output, result))
        else:
            _print(arguments.output, result)
    return 0


def check_arguments(arguments: argparse.Namespace, task: str) -> None:
    """Refuse options that are wrong for every model of a task, or contradict each other; raises MisuseError."""
    recipe, budget, bounds = _asked(arguments, task)
    keep_worst, labelled = arguments.keep_worst or 0, arguments.labelled
    check_options(
        task, recipe, arguments.data, keep_worst, budget, bounds_of(bounds, recipe.scheme, task), labelled=labelled
    )


def _asked(arguments: argparse.Namespace, task: str) -> tuple[Recipe, Budget | None, tuple[str, ...]]:
    """The recipe, the budget and the gates that were stated."""
    metrics = evaluation_of(task).METRICS
    if arguments.report is not None and task != TEXT_GENERATION:
        raise MisuseError(f"--report is for language models, and this model is for {task}; leave it out.")
    # Before the bound is read: figures of other tasks would be named as if they could be searched by.
    check_searches(task, keep_worst=bool(arguments.keep_worst), budget=arguments.budget is not None)
    bounds = tuple(gate.text for gate in gates_of(arguments, metrics, "--check"))
    return recipe_of(arguments), budget_of(arguments, metrics), bounds


def _rows_of(arguments: argparse.Namespace) -> RowOptions | None:
    """How rows are made; None where nothing was said."""
    given = {"num_rows": arguments.samples, "seq_len": arguments.seq_len, "field": arguments.field}
    given = {name: value for name, value in given.items() if value is not None}
    return RowOptions(seed=arguments.seed, **given) if given or arguments.seed else None


def _examples() -> str:
    """Gates of each task, and what holds where none is given."""
    parts = []
    for name in task_names(tasks):
        defaults = ", ".join(f"{scheme} {bound}" for scheme, bound in task_module(tasks, name).DEFAULTS.items())
        parts.append(f"{name}: by default {defaults}")
    return f"kl<=0.02 or top1>=95% ({'; '.join(parts)})"


def _print(output: Path, result: Calibrated) -> None:
    size = sum(record.size for record in result.manifest.files.values())
    print_text(
        f"{output}: {result.manifest.model.scheme}, {len(result.quantized)} linears quantized, "
        f"{_kept_text(result)}, {size / 1e6:,.0f} MB"
    )
    print_text(
        f"  weights: {result.size.actual / 1e6:,.1f} MB, {result.size.promised / 1e6:,.1f} MB promised by the scheme's "
        f"bits ({result.size.excess:+.1%})"
    )
    if result.remainders:
        print_text(f"  remainders: {remainders_text(result.remainders)}")
    for line in result.check.summaries:
        print_text(f"  checked: {line}")
    if (spent := result.spent) is not None and spent.best is not None:
        how = "" if spent.is_complete else ", and time ran out"
        print_text(
            f"  budget {spent.bound}: {spent.best.share:.1%} of the linears' multiply-adds in integers, "
            f"{len(spent.points)} models measured in {spent.seconds:.0f} s{how}"
        )
    for name, error in list(result.sensitivity.items())[:SHOWN]:
        state = "kept with INT8 weights" if name in result.weight_only else "kept in float"
        state = "quantized" if name in result.quantized else state
        unit = " nats" if result.manifest.task == TEXT_GENERATION else ""
        cost_alone = f", the model by {result.cost_alone[name]:.2g}{unit}" if name in result.cost_alone else ""
        print_text(f"  {name}: INT8 moves its output by {error**0.5:.1%}{cost_alone}; {state}")
    for line in verdict_of(result).lines:
        print_text(f"  {line}")


def _kept_text(result: Calibrated) -> str:
    alone = len(result.weight_only)
    return (f"{alone} with weights alone in INT8, " if alone else "") + f"{len(result.kept) - alone} in float"


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


def to_json(output: Path, result: Calibrated) -> dict[str, object]:
    """For --json."""
    return {
        "output": str(output),
        "scheme": result.manifest.model.scheme,
        "quantized": result.quantized,
        "kept": result.kept,
        "weight_only": result.weight_only,
        "size": dataclasses.asdict(result.size),
        "sensitivity": result.sensitivity,
        "cost_alone": result.cost_alone,
        "budget": None if result.spent is None else result.spent.to_json(),
        "check": result.check.to_json(),
        "verdict": verdict_of(result).to_json(),
        "calibration": result.manifest.made_by["calibration"],
    }
