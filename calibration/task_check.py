"""The check of a quantized model that is no language model: its task compares it with the float one."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.console import Progress
from piston.core.errors import ShortfallError
from piston.core.gates import Gate, GateResult, Metric
from piston.core.tasks import task_module
from piston.data.held_out import HeldOut
from piston.data.rows import hash_rows
from piston.evaluation import tasks
from piston.evaluation.tasks import Comparison


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """What was found on rows that calibration has not seen."""

    comparison: Comparison
    gates: tuple[GateResult, ...]
    held_out: HeldOut

    @property
    def summaries(self) -> list[str]:
        """The comparison in a line."""
        return [self.comparison.summary]

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "data": self.held_out.source,
            "sha256": hash_rows(self.held_out.ids),
            "overlap": self.held_out.overlap.share,
            "values": dict(self.comparison.values),
            "bounds": [dataclasses.asdict(gate) for gate in self.gates],
        }


def check_task(
    task: str,
    candidate: Path,
    reference: Path,
    held_out: HeldOut,
    bounds: Sequence[Gate[Metric]],
    progress: Progress,
) -> TaskCheck:
    """Compare two model directories.

    Raises:
        ShortfallError: a bound is not met; the message has the figures.
        EngineError: the model does not run.
    """
    comparison = task_module(tasks, task).compare(candidate, reference, held_out.ids, progress)
    found = TaskCheck(comparison, tuple(gate.judge(comparison.values) for gate in bounds), held_out)
    if missed := [gate for gate in found.gates if not gate.is_met]:
        raise ShortfallError(
            f"Checked on text it was not calibrated with, the quantized model is outside its bound: {missed[0]} "
            f"({comparison.summary}). Nothing was written; leave more in float (--keep), or state with --require what "
            "it may cost."
        )
    return found
