"""How near a model of each task is to another: one module a task, found by name (piston.core.tasks).

A module has

    METRICS: Mapping[str, Metric]  # figures that a gate on a quantized model may name
    DEFAULTS: Mapping[str, str]  # by scheme: the gate where none was given
    quality(model, path) -> Mapping[str, float]  # figures of a loaded model on labelled examples of a file

but for text-generation, whose quantized models are compared by `piston.calibration.check`. Tasks of encoders have

    moved(found, wanted) -> Comparison  # how far outputs, one for each text, are from the float model's
    refit(model, reference, path) -> Mapping[str, Any]  # settings of a quantized model, of tasks that have such

and those of encoder-decoders

    MODEL  # the class of the runtime that is made of both graphs
    read_examples(path) -> list[Example]
    forced_answers(model, examples, num_answers, on_step) -> list[ForcedAnswer]  # what the decoder is made to read
    compare(candidate, reference, answers, progress) -> Comparison  # two model directories along the same answers
    compare_models(candidate, reference, examples, progress) -> Comparison  # loaded ones
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from piston.core.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Values by quantity, as gates name them, and a line for people."""

    values: Mapping[str, float]
    summary: str


class TaskModel(Protocol):
    """What a task's runtime makes of a bundle."""

    manifest: Manifest
    target: str

    def close(self) -> None:
        """Free the engine."""
