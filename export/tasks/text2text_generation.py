"""Encoder-decoders from text to text: both graphs, compared with transformers on every step."""

from pathlib import Path
from typing import Any

import numpy as np

from piston.checkpoint.architectures import TEXT_TYPES
from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.interface import SOURCE_INPUTS
from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.export.job import ExportJob
from piston.export.languages import language_settings
from piston.export.positions import is_position_embedding
from piston.export.source_models import SourceKind, decoder_start, export_encoder_decoder, summary
from piston.runtime.backends.engine import Source

TASK = "text2text-generation"
LENGTHS = (1, 3, 8, 21)  # tokens of the sources, one batch
UNLIMITED = 512  # positions of models that have no table of positions, unless --context says more

__all__ = ["export", "summary"]


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder_decoder(job, work, TEXT)


def positions_of(model: Any, context: int | None) -> int:
    """Tokens that a source and an answer may have.

    Raises:
        MisuseError: `context` is more than the model's table of positions has.
    """
    if not any(is_position_embedding(name, module) for name, module in model.named_modules()):
        return context or int(getattr(model.config, "n_positions", None) or UNLIMITED)
    largest = int(model.config.max_position_embeddings)
    if context is not None and context > largest:
        raise MisuseError(f"--context {context} is more than the {largest} positions of the model.")
    return context or largest


def _sources(config: Any, positions: int) -> list[Source]:
    rng, vocab_size = np.random.default_rng(1), int(config.vocab_size)
    sizes = sorted({min(length, positions) for length in LENGTHS})
    return [Source.of_text(rng.integers(min(5, vocab_size - 1), vocab_size, size).tolist()) for size in sizes]


def _settings(checkpoint: Checkpoint, model: Any) -> dict[str, Any]:
    return {"decoder_start": [decoder_start(checkpoint, model)], **language_settings(checkpoint, model.config)}


TEXT = SourceKind(
    task=TASK,
    auto="AutoModelForSeq2SeqLM",
    model_types=TEXT_TYPES,
    argument="input_ids",
    inputs=lambda _: SOURCE_INPUTS,
    num_positions=lambda _: None,
    positions=positions_of,
    sources=_sources,
    settings=_settings,
)
