"""The `calibrate` verb."""

import argparse
import dataclasses
from pathlib import Path

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions, bounds_of, evaluation_of
from piston.calibration.recipe import Recipe
from piston.calibration.recipe_cli import add_recipe_arguments, budget_of, recipe_of
from piston.calibration.refusals import check_options, check_searches
from piston.calibration.report import page_of, remainders_text
from piston.calibration.result import Calibrated
from piston.calibration.search.budget import Budget
from piston.calibration.verdict import verdict_of
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.errors import MisuseError
from piston.core.gates import add_gate_arguments, gates_of
from piston.core.json_text import json_text
from piston.core.outputs import check_output_files, write_output
from piston.core.tasks import task_module, task_names
from piston.data.rows import RowOptions
from piston.evaluation import tasks
from piston.graph.trained_scales import TrainedScales

SHOWN = 5  # of the most sensitive linears


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
    recipe = add_recipe_arguments(parser)
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
