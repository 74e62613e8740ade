"""How near a model of each task is to another: one module a task, found by name (piston.core.tasks).

A module has

    METRICS: Mapping[str, Metric]  # figures that a gate on a quantized model may name
    DEFAULTS: Mapping[str, str]  # by scheme: the gate where none was given
    compare(candidate, reference, rows, progress) -> Comparison  # two model directories on rows of token ids

but for text-generation, whose quantized models are compared by `piston.calibration.check`, and for tasks of encoders,
which piston.evaluation.encoders compares by

    moved(found, wanted) -> Comparison  # how far outputs, one for each text, are from the float model's
    quality(model, path) -> Mapping[str, float]  # figures of a loaded model on labelled examples of a file
    refit(model, reference, path) -> Mapping[str, Any]  # settings of a quantized model, of tasks that have such
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Values by quantity, as gates name them, and a line for people."""

    values: Mapping[str, float]
    summary: str
