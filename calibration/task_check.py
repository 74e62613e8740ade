"""The check of a quantized model that is no language model: its task compares it with the float one."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.calibration.answers import HeldOutAnswers
from piston.core.bundle.manifest import Manifest
from piston.core.console import Progress
from piston.core.gates import Gate, GateResult, Metric, MissedGateError
from piston.core.tasks import task_module
from piston.data.arrays import HeldOutArrays
from piston.data.held_out import HeldOut
from piston.evaluation import tasks
from piston.evaluation.encoders import compare, qualities, shown_qualities
from piston.evaluation.opening import open_model_directory
from piston.evaluation.tasks import Comparison


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What was found on rows that calibration has not seen."""

    comparison: Comparison
    gates: tuple[GateResult, ...]
    held_out: HeldOut | HeldOutArrays | HeldOutAnswers

    @property
    def summaries(self) -> list[str]:
        """The comparison in a line."""
        return [self.comparison.summary]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "data": self.held_out.source,
            "sha256": self.held_out.sha256,
            "overlap": self.held_out.share,
            "values": dict(self.comparison.values),
            "bounds": [dataclasses.asdict(gate) for gate in self.gates],
        }


def refit_task(candidate: Path, reference: Path, labelled: Path) -> Manifest:
    """Settings that depend on a model's numbers, such as thresholds, fitted anew in the manifest of `candidate`."""
    manifest = Manifest.read(candidate)
    module = task_module(tasks, manifest.task)
    if not hasattr(module, "refit"):
        return manifest
    with closing(open_model_directory(candidate)) as quantized, closing(open_model_directory(reference)) as exact:
        changed = module.refit(quantized, exact, labelled)
    if changed:
        manifest = dataclasses.replace(manifest, settings={**manifest.settings, **changed})
        manifest.write(candidate)
    return manifest


def check_task(
    candidate: Path,
    reference: Path,
    held_out: HeldOut | HeldOutArrays | HeldOutAnswers,
    bounds: Sequence[Gate[Metric]],
    labelled: Path | None,
    progress: Progress,
) -> TaskCheck:
    """Compare two model directories, on `labelled` examples also by the task's own figures.

    Raises:
        MissedGateError: a bound is not met; the message has the figures.
        EngineError: the model does not run.
    """
    module = task_module(tasks, Manifest.read(candidate).task)
    compared: Callable[..., Comparison] = compare if hasattr(module, "moved") else module.compare
    comparison = compared(candidate, reference, held_out.ids, progress)
    if labelled is not None:
        with closing(open_model_directory(candidate)) as quantized, closing(open_model_directory(reference)) as exact:
            values = qualities(quantized, exact, labelled)
        summary = f"{comparison.summary}; on {labelled.name} {shown_qualities(values)}"
        comparison = Comparison(values={**comparison.values, **values}, summary=summary)
    found = TaskCheck(comparison, tuple(gate.judge(comparison.values) for gate in bounds), held_out)
    if missed := [gate for gate in found.gates if not gate.is_met]:
        options = "--budget, --keep-worst, --keep" if hasattr(module, "moved") else "--keep"
        raise MissedGateError(
            f"Checked on data it was not calibrated with, the quantized model is outside its bound: {missed[0]} "
            f"({comparison.summary}). Nothing was written; leave more in float ({options}), or state with --require "
            "what it may cost.",
            found.gates,
        )
    return found
