"""Reranking: a cross-encoder, which scores a query and a document that it reads together.

It has a head for the score, or is a language model, see piston.export.causal_reranker. sentence-transformers keeps the
function of the score in config.json: `sentence_transformers.activation_fn`, or `sbert_ce_default_activation_function`
before version 4; from 5.4 on in config_sentence_transformers.json. Without it one logit goes through a sigmoid.
"""

from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.json_files import read_optional
from piston.checkpoint.task import OLDER, architecture_of, is_causal_reranker
from piston.core.bundle.manifest import Manifest
from piston.core.errors import UnsupportedModelError
from piston.export.causal_reranker import CAUSAL, read_causal_reranker
from piston.export.encoder_task import EncoderTask, export_encoder, summary
from piston.export.heads import Logits
from piston.export.job import ExportJob
from piston.export.labels import labels_of

__all__ = ["TASK", "export", "summary"]

TASK = "text-ranking"
ACTIVATIONS = {"Sigmoid": "sigmoid", "Identity": "identity"}


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder(job, work, _task)


def _task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    is_causal = not checkpoint.gguf and is_causal_reranker(checkpoint.directory)
    if is_causal or architecture_of(checkpoint.written_config()).endswith(CAUSAL):
        return _causal_task(checkpoint, config)
    labels, _ = labels_of(checkpoint.name, config, checkpoint.written_config())
    if len(labels) > 2:  # noqa: PLR2004
        raise UnsupportedModelError(
            f"{checkpoint.name} has {len(labels)} logits ({', '.join(labels)}), and documents are ranked by one logit, "
            "or by the second of two; export it with --task text-classification."
        )
    return EncoderTask(
        name=TASK,
        auto="AutoModelForSequenceClassification",
        head=Logits(),
        output="logits",
        settings={"activation": "softmax" if len(labels) == 2 else _activation(checkpoint, config)},  # noqa: PLR2004
    )


def _causal_task(checkpoint: Checkpoint, config: Any) -> EncoderTask:
    found = read_causal_reranker(checkpoint, config)
    return EncoderTask(
        name=TASK,
        auto="AutoModelForCausalLM",
        head=found.head,
        output="logits",
        settings={
            "activation": _activation(checkpoint, config),
            "prompt": list(found.prompt),
            "instruction": found.instruction,
            "strips": found.strips,
        },
        max_length=found.max_length,
        remarks=found.remarks,
    )


def _activation(checkpoint: Checkpoint, config: Any) -> str:
    saved = read_optional(checkpoint.directory / "config_sentence_transformers.json")  # from version 5.4 on
    older = getattr(config, "sentence_transformers", None)
    saved |= older if isinstance(older, dict) else {}
    given = saved.get("activation_fn") or getattr(config, OLDER, None) or "Sigmoid"
    name = str(given).rpartition(".")[2]
    if name not in ACTIVATIONS:
        raise UnsupportedModelError(
            f"{checkpoint.name} puts its scores through {given!r}; supported: {', '.join(ACTIVATIONS)}."
        )
    return ACTIVATIONS[name]
