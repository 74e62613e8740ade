"""`piston eval` on tasks but text-generation: figures on labelled examples, or how near two models' outputs are."""

import argparse
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress, note, print_json, print_text
from piston.core.data_files import read_bytes, records_of, texts_of
from piston.core.errors import MisuseError
from piston.core.gates import GateResult, gates_of, tell_gates
from piston.core.outputs import check_output_files, write_output
from piston.core.report.page import Tile, page, paragraph
from piston.core.report.page import gates as judged
from piston.core.schema import to_plain
from piston.core.tasks import task_module, task_names
from piston.evaluation import tasks
from piston.evaluation.encoders import needs_labels, qualities, shown_qualities, text_outputs
from piston.evaluation.opening import open_model_directory, read_alike
from piston.evaluation.tasks import TaskModel
from piston.runtime import tasks as runtime_tasks
from piston.runtime.bundle import Bundle
from piston.runtime.encoder import EncoderModel

TEXT_ONLY = {"text", "prompt", "messages", "document"}  # fields of records that are no labelled examples


def has_figures(task: str) -> bool:
    """Whether a task has figures of its own on labelled examples."""
    return task in task_names(tasks) and hasattr(task_module(tasks, task), "quality")


def is_evaluated(task: str) -> bool:
    """Whether `piston eval` has figures of bundles of a task."""
    return task == TEXT_GENERATION or has_figures(task)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, print, judge; the options are checked."""
    task = Manifest.read(arguments.path).task
    gates = gates_of(arguments, task_module(tasks, task).METRICS, "--fail-on")
    check_output_files({"--html": arguments.html}, [arguments.path, arguments.data, arguments.reference])
    is_labelled = _is_labelled(arguments.data, task)
    for gate in gates:
        if gate.needs_reference and arguments.reference is None:
            raise MisuseError(f"--require {gate.text!r} bounds a comparison; give the other model as --reference.")
        if needs_labels(gate.metric) != is_labelled:
            needed = "labelled examples" if needs_labels(gate.metric) else "texts without labels"
            raise MisuseError(f"--require {gate.text!r} is measured on {needed}; give them as --data.")
    if not is_labelled and arguments.reference is None:
        raise MisuseError(f"{arguments.data} has no labels; give labelled examples, or a model to compare with as "
                          "--reference.")  # fmt: skip
    progress = Progress(quiet=arguments.quiet)
    with progress.phase("evaluating"), closing(_open(arguments.path, arguments)) as candidate:
        target = candidate.target
        if arguments.reference is None:
            values, shown = _measured(candidate, None, arguments.data, progress, is_labelled=is_labelled)
        else:
            Manifest.read(arguments.reference).require_task(task, arguments.reference)
            with closing(_open(arguments.reference, arguments, target=None)) as reference:
                read_alike(candidate, reference, tell=_nothing if arguments.quiet else note)
                values, shown = _measured(candidate, reference, arguments.data, progress, is_labelled=is_labelled)
    results = [gate.judge(values) for gate in gates]
    record = {
        "schema": 1,
        "piston": version("piston"),
        "task": task,
        "path": str(arguments.path),
        "target": target,
        "reference": None if arguments.reference is None else str(arguments.reference),
        "data": str(arguments.data),
        "data_sha256": hashlib.sha256(read_bytes(arguments.data)).hexdigest(),
        "is_labelled": is_labelled,
        "values": values,
        "gates": to_plain(results),
    }
    try:
        if arguments.html is not None:
            write_output(arguments.html, _page(arguments, values, shown, results))
    finally:  # the figures are printed even if a file cannot be written
        if arguments.json:
            print_json(record)
        else:
            print_text(f"{arguments.path} on {arguments.data}: {shown}")
    return tell_gates(results)


def _nothing(text: str) -> None:
    """Print no remark."""


def _measured(
    candidate: TaskModel, reference: TaskModel | None, data: Path, progress: Progress, *, is_labelled: bool
) -> tuple[dict[str, float], str]:
    """Values by quantity, and a line for people."""
    if is_labelled:
        values = qualities(candidate, reference, data)
        return values, shown_qualities(values)
    assert reference is not None
    module = task_module(tasks, candidate.manifest.task)
    if hasattr(module, "compare_models"):
        compared = module.compare_models(candidate, reference, module.read_examples(data), progress)
        return dict(compared.values), compared.summary
    texts = texts_of(data)
    assert isinstance(candidate, EncoderModel)
    assert isinstance(reference, EncoderModel)
    compared = module.moved(text_outputs(candidate, texts), text_outputs(reference, texts))
    return dict(compared.values), compared.summary


def _page(arguments: argparse.Namespace, values: Mapping[str, float], shown: str, results: Sequence[GateResult]) -> str:
    """The figures as one page."""
    tiles = [
        Tile(name, f"{value:.4f}", f"of the reference {values[f'{name}_reference']:.4f}" if is_compared else "")
        for name, value in values.items()
        if not name.endswith(("_change", "_reference"))
        for is_compared in [f"{name}_reference" in values]
    ]
    lead = [paragraph(f"{arguments.path} on {arguments.data}: {shown}.")]
    return page(
        f"{arguments.path}: evaluation", tiles, judged(results), f"Written by piston eval, {version('piston')}.", lead
    )


def _is_labelled(path: Path, task: str) -> bool:
    """Whether the file has records with more than a text, or examples that have answers."""
    module = task_module(tasks, task)
    if hasattr(module, "read_examples"):
        return any(example.target is not None for example in module.read_examples(path))
    records = records_of(read_bytes(path).decode("utf-8-sig", "replace"), path)
    first = records[0][1] if records else None
    return isinstance(first, dict) and not {*first} <= TEXT_ONLY


def _open(path: Path, arguments: argparse.Namespace, **options: Any) -> TaskModel:
    """A bundle's engine, or the graph of a model directory as it is."""
    bundle = Bundle.open(path, verify=False)
    if bundle.manifest.kind == "model":
        if options.get("target", arguments.target) is not None:
            raise MisuseError(f"{path} is a model directory and runs as it is; --target is for bundles.")
        return open_model_directory(path, threads=arguments.threads, max_length=arguments.max_length)
    given = {"target": arguments.target, "max_length": arguments.max_length, "threads": arguments.threads} | options
    model: TaskModel = task_module(runtime_tasks, bundle.manifest.task).open_model(bundle, **given)
    return model
