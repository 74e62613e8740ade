"""Extractive question answering: an encoder that says of each token whether the answer starts or ends with it."""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.manifest import Manifest
from piston.export.encoder_task import POOLERS, EncoderTask, export_encoder, summary
from piston.export.heads import SpanLogits
from piston.export.job import ExportJob

__all__ = ["TASK", "export", "summary"]

TASK = "question-answering"


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
