"""Text classification and regression: an encoder with a head on the whole text."""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.manifest import Manifest
from piston.export.encoder_task import EncoderTask, export_encoder, summary
from piston.export.heads import Logits
from piston.export.job import ExportJob
from piston.export.labels import MULTI_LABEL, labels_of, problem_of

__all__ = ["TASK", "export", "summary"]

TASK = "text-classification"
THRESHOLD = 0.5  # of a label's probability, where a text may have several labels


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder(job, work, _task)


def _task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    labels, remarks = labels_of(checkpoint.name, config, checkpoint.written_config())
    problem = problem_of(checkpoint.name, config, len(labels))
    settings: dict[str, Any] = {"labels": labels, "problem_type": problem}
    if problem == MULTI_LABEL:
        settings["thresholds"] = dict.fromkeys(labels, THRESHOLD)
    return EncoderTask(
        name=TASK,
        auto="AutoModelForSequenceClassification",
        head=Logits(),
        output="logits",
        settings=settings,
        remarks=remarks,
    )
