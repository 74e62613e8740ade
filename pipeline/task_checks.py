"""What the last stages of a recipe could not run with, refused before the first: options, gates and missing files."""

import re
from collections.abc import Sequence
from pathlib import Path

from piston.bench.works import TASKS as MEASURED_AT_SETTINGS
from piston.bench.works import figures_of, is_measured
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.errors import MisuseError
from piston.core.tasks import task_module
from piston.data.rows import BUILTIN
from piston.evaluation import tasks
from piston.evaluation.metrics import METRICS
from piston.evaluation.task_cli import is_evaluated
from piston.pipeline.gates import stage_of
from piston.pipeline.options import arguments_of, module_of
from piston.pipeline.recipe import FLOAT, VERIFY, Recipe

NO_FILES = (FLOAT, BUILTIN)  # what stands for one
_QUANTILE = re.compile(r"\.p\d+$")


def check_task(recipe: Recipe, task: str | None) -> None:
    """Refuse what is not for a task: [eval] and [bench], options of them and of [calibrate], gates on their figures.

    Nothing is refused where the task is None. Raises MisuseError.
    """
    if task is None:
        return
    for verb, measures in (("calibrate", None), ("eval", is_evaluated), ("bench", is_measured)):
        table = recipe.table(verb)
        if table is None:
            continue
        if measures is not None and not measures(task):
            raise MisuseError(f"The recipe has [{verb}], and `piston {verb}` measures nothing of {task}; leave it out.")
        arguments = arguments_of(verb, table)
        try:
            module_of(verb).check_arguments(arguments, task)
        except MisuseError as problem:
            raise MisuseError(f"[{verb}] of the recipe cannot be run: {problem}") from None
        if measures is not None:
            _check_gates(recipe, verb, task, _eval_figures(task) if verb == "eval" else figures_of(arguments, task))


def check_files(recipe: Recipe, base: Path) -> None:
    """Refuse files of stages after the export that do not exist, relative to `base`; raises MisuseError."""
    for verb in ("calibrate", VERIFY, "eval", "bench"):
        table = recipe.table(verb) or {}
        arguments = vars(arguments_of(verb, table)) if table else {}
        for name in table:
            for path in arguments[name] if isinstance(arguments[name], list) else [arguments[name]]:
                if isinstance(path, Path) and str(path) not in NO_FILES and not (base / path).exists():
                    raise MisuseError(f"{verb}.{name} of the recipe is {path}, which does not exist in {base}.")


def _eval_figures(task: str) -> list[str]:
    return [*(METRICS if task == TEXT_GENERATION else task_module(tasks, task).METRICS)]


def _check_gates(recipe: Recipe, verb: str, task: str, figures: Sequence[str]) -> None:
    for gate in recipe.parsed_gates:
        if stage_of(gate) != verb:
            continue
        name = gate.metric.name.removeprefix(f"{verb}.")
        has_median_only = verb == "bench" and task not in MEASURED_AT_SETTINGS
        if _QUANTILE.sub("", name) not in figures or (has_median_only and _QUANTILE.search(name.removesuffix(".p50"))):
            raise MisuseError(
                f"The gate {gate.text!r} is not measured of {task}; the figures of `piston {verb}` are "
                f"{', '.join(figures)}."
            )
