"""Token classification: an encoder with a head on every token, such as one that tags named entities."""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.manifest import Manifest
from piston.export.encoder_task import POOLERS, EncoderTask, export_encoder, summary
from piston.export.heads import Logits
from piston.export.job import ExportJob
from piston.export.labels import labels_of

__all__ = ["TASK", "export", "summary"]

TASK = "token-classification"


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder(job, work, _task)


def _task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    labels, remarks = labels_of(checkpoint.name, config, checkpoint.written_config())
    return EncoderTask(
        name=TASK,
        auto="AutoModelForTokenClassification",
        head=Logits(),
        output="logits",
        per_token=True,
        unused=POOLERS,
        settings={"labels": labels},
        remarks=remarks,
    )
