"""Options and data that do not fit the model or each other, refused before any work."""

from collections.abc import Sequence
from pathlib import Path

from piston.calibration.check import evaluation_of
from piston.calibration.float_graph import ModelGraph
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.embeddings import embedding_of
from piston.calibration.search.budget import Budget
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.errors import MisuseError
from piston.core.gates import Gate, Metric
from piston.evaluation.encoders import needs_labels


def check_options(  # noqa: PLR0913
    task: str,
    recipe: Recipe,
    data: Sequence[str | Path],
    keep_worst: int,
    budget: Budget | None,
    bounds: Sequence[Gate[Metric]],
    *,
    labelled: Path | None,
) -> None:
    """Refuse options that do not suit the task or contradict each other; reads no file. Raises MisuseError."""
    _check_choice(recipe, keep_worst, budget)
    _check_task(task, recipe, keep_worst, budget)
    _check_data(task, recipe, data, budget)
    _check_labels(task, bounds, labelled)


def _check_choice(recipe: Recipe, keep_worst: int, budget: Budget | None) -> None:
    """Refuse options about what stays in float that contradict each other."""
    if keep_worst < 0:
        raise MisuseError(f"--keep-worst {keep_worst} must be at least 0.")
    if keep_worst and recipe.scheme != "w8a8":
        raise MisuseError(f"--keep-worst ranks by INT8 activations, which {recipe.scheme} has none of; use --keep.")
    if keep_worst and budget is not None:
        raise MisuseError("--budget finds what to leave in float; leave --keep-worst out.")
    if recipe.scheme == "fp" and budget is not None:
        raise MisuseError("--budget finds linears to leave in float, and fp leaves all; state --require instead.")


def check_searches(task: str, *, keep_worst: bool, budget: bool) -> None:
    """Refuse to measure linears one by one in models of two graphs, and in modules of one's own."""
    if task == TEXT_GENERATION or hasattr(evaluation_of(task), "moved") or not (keep_worst or budget):
        return
    option = "--budget" if budget else "--keep-worst"
    raise MisuseError(f"{option} is for language models and encoders, and this model is for {task}; leave it out.")


def _check_task(task: str, recipe: Recipe, keep_worst: int, budget: Budget | None) -> None:
    """Refuse what needs a cache, or one graph whose linears are switched in turn."""
    if task == TEXT_GENERATION:
        return
    check_searches(task, keep_worst=bool(keep_worst), budget=budget is not None)
    asked = {
        "--kv int8": recipe.kv != "float",
        "--rounding gptq": task == MODULE and recipe.rounding == "gptq",
        "--rounding awq": task == MODULE and recipe.rounding == "awq",
        "--pruning sparsegpt": task == MODULE and bool(recipe.sparsity) and recipe.pruning == "sparsegpt",
    }
    if given := [option for option, is_given in asked.items() if is_given]:
        remedies = {"--rounding": "give --rounding nearest", "--pruning": "give --pruning magnitude"}
        remedy = remedies.get(given[0].split()[0], "leave it out")
        able = "models of transformers" if given[0].split()[0] in remedies else "language models"
        raise MisuseError(f"{given[0]} is for {able}, and this model is for {task}; {remedy}.")


def check_tables(recipe: Recipe, graphs: Sequence[ModelGraph]) -> None:
    """Refuse tables in INT8 that no graph has."""
    has_head = any(linear.is_head for graph in graphs for linear in graph.linears)
    has_embedding = any(embedding_of(graph.model.graph) is not None for graph in graphs)
    for option, stored, is_there in (("head", recipe.head, has_head), ("embedding", recipe.embedding, has_embedding)):
        if stored == "int8" and not is_there:
            name = "lm_head" if option == "head" else "embedding of token ids"
            raise MisuseError(f"The model has no {name} that --{option} int8 could quantize; leave it out.")


def _check_labels(task: str, bounds: Sequence[Gate[Metric]], labelled: Path | None) -> None:
    """Refuse labelled examples of a task that has no figures for them, and bounds that need examples without them."""
    if task == TEXT_GENERATION or not hasattr(evaluation_of(task), "quality"):
        if labelled is not None:
            raise MisuseError(
                f"--labelled is for tasks with labelled examples, and this model is for {task}; leave it out."
            )
        return
    if missing := [gate.text for gate in bounds if labelled is None and needs_labels(gate.metric)]:
        raise MisuseError(f"--require {missing[0]!r} is measured on labelled examples; give them as --labelled FILE.")


def _check_data(task: str, recipe: Recipe, data: Sequence[str | Path], budget: Budget | None) -> None:
    """Refuse data that is missing, or that nothing reads."""
    reads_text = recipe.reads_text or budget is not None
    described = recipe.described if recipe.reads_text else f"{recipe.described} within a budget"
    or_builtin = ".npz" if task == MODULE else " or --data builtin"
    if reads_text and not data:
        raise MisuseError(f"{described} needs data: give --data FILE{or_builtin}.")
    if data and not reads_text:
        reads, or_gptq = ("arrays", "") if task == MODULE else ("text", "ask for --rounding gptq, ")
        raise MisuseError(
            f"{recipe.described} reads no {reads}; leave --data out, {or_gptq}or give the {reads} to check the result "
            "on as --check-data."
        )
