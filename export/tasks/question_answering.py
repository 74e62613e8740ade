"""Extractive question answering: an encoder that says of each token whether the answer starts or ends with it."""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.manifest import Manifest
from piston.export.encoder_task import POOLERS, EncoderTask, architecture_of, export_encoder, summary
from piston.export.heads import SpanLogits
from piston.export.job import ExportJob

__all__ = ["TASK", "export", "recognises", "summary"]

TASK = "question-answering"


def recognises(checkpoint: Checkpoint) -> bool:
    """A head for spans."""
    return architecture_of(checkpoint).endswith("ForQuestionAnswering")


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder(job, work, _task)


def _task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    del checkpoint, config
    return EncoderTask(
        name=TASK,
        auto="AutoModelForQuestionAnswering",
        head=SpanLogits(),
        output="logits",
        per_token=True,
        unused=POOLERS,
    )
