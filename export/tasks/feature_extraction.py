"""Sentence embeddings: an encoder with its pooling."""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.manifest import Manifest
from piston.export.encoder_task import EncoderTask, export_encoder, summary
from piston.export.heads import Pooled
from piston.export.job import ExportJob
from piston.export.pooling import SentenceModules, read_modules

__all__ = ["TASK", "export", "summary"]

TASK = "feature-extraction"
# Not read for token embeddings: the classifier's pooler, and the heads of what the model was trained by.
UNUSED = ("pooler.", "cls.", "lm_head.", "vocab_", "discriminator_predictions.", "predictions.")


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder(job, work, _task)


def _task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    del config
    modules = read_modules(checkpoint)
    return EncoderTask(
        name=TASK,
        auto="AutoModel",
        head=Pooled(modules.head),
        output="pooled",
        unused=UNUSED,
        settings=settings_of(modules),
        max_length=modules.max_length,
        is_lowercase=modules.is_lowercase,
        remarks=modules.remarks,
    )


def settings_of(modules: SentenceModules) -> dict[str, Any]:
    """What the runtime needs to know besides the graph."""
    return {
        "pooling": list(modules.head.modes),
        "normalized": modules.is_normalized,
        "prompts": dict(modules.prompts),
        "default_prompt": modules.default_prompt,
    }
