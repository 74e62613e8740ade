"""Speech recognition by an encoder-decoder: both graphs, compared with transformers on every step."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from piston.checkpoint.checkpoint import Checkpoint
from piston.core.bundle.interface import BATCH, TensorSpec
from piston.core.bundle.manifest import Manifest
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.job import ExportJob
from piston.export.source_models import SourceKind, decoder_start, export_encoder_decoder, is_of, summary
from piston.runtime.backends.engine import Source

TASK = "automatic-speech-recognition"
MODEL_TYPES = ("whisper",)
FEATURE_NAMES = ("feature_size", "sampling_rate", "n_fft", "hop_length", "chunk_length")
FEATURES, SETTINGS = "preprocessor_config.json", "generation_config.json"
STRIDE = 2  # frames of audio that become one position: the encoder's second convolution

__all__ = ["export", "recognises", "summary"]


def recognises(checkpoint: Checkpoint) -> bool:
    """A speech model of a supported type."""
    return is_of(checkpoint, MODEL_TYPES)


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    return export_encoder_decoder(job, work, SPEECH)


def _inputs(config: Any) -> tuple[TensorSpec, ...]:
    return (TensorSpec(name="audio", dtype="float32", shape=(BATCH, *_sizes(config)), role="audio"),)


def _sizes(config: Any) -> tuple[int, int]:
    """Mel bins and frames."""
    return int(config.num_mel_bins), STRIDE * int(config.max_source_positions)


def _sources(config: Any, positions: int) -> list[Source]:
    """Two windows of noise in the range of log-mel features."""
    del positions
    rng, (mels, frames) = np.random.default_rng(1), _sizes(config)
    return [
        Source(
            {"audio": rng.uniform(-1, 1.5, (1, mels, frames)).astype(np.float32)}, number, config.max_source_positions
        )
        for number in range(2)
    ]


def positions_of(model: Any, context: int | None) -> int:
    """Tokens of an answer, its prompt included; raises MisuseError for a `context` beyond the model's."""
    largest = int(model.config.max_target_positions)
    if context is not None and context > largest:
        raise MisuseError(f"--context {context} is more than the {largest} positions of the model.")
    return context or largest


def _settings(checkpoint: Checkpoint, model: Any) -> dict[str, Any]:
    """The special tokens, named as SpeechTokens of the runtime does, and how audio becomes features."""
    stated, vocabulary = _stated(checkpoint), _vocabulary(checkpoint)
    no_timestamps = stated.get("no_timestamps_token_id", vocabulary.get("<|notimestamps|>"))
    if not isinstance(no_timestamps, int):
        raise CheckpointError(f"{checkpoint.name} names no no_timestamps_token_id; add it to generation_config.json.")
    start, ends = decoder_start(checkpoint, model), model.generation_config.eos_token_id
    return {
        "decoder_start": [start],
        "speech": {
            "start": start,
            "end": ends[0] if isinstance(ends, list) else ends,
            "no_timestamps": no_timestamps,
            "previous": stated.get("prev_sot_token_id", vocabulary.get("<|startofprev|>")),
            "no_speech": vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>")),
            "languages": {token.strip("<|>"): number for token, number in (stated.get("lang_to_id") or {}).items()},
            "tasks": dict(stated.get("task_to_id") or {}),
            "latest_start": stated.get("max_initial_timestamp_index"),
            "context": int(model.config.max_target_positions),
        },
        "alignment_heads": stated.get("alignment_heads"),
        "features": _features(checkpoint, _sizes(model.config)),
    }


def _features(checkpoint: Checkpoint, sizes: tuple[int, int]) -> dict[str, Any]:
    """What piston.runtime.audio.log_mel needs to know; raises CheckpointError where it is not the model's."""
    found = _json(checkpoint, FEATURES)
    try:
        stated = {name: int(found[name]) for name in FEATURE_NAMES}
    except (KeyError, TypeError, ValueError) as problem:
        raise CheckpointError(f"{FEATURES} of {checkpoint.name} has no usable {problem}; copy the original.") from None
    if found.get("dither") or found.get("do_normalize"):
        raise UnsupportedModelError(f"{FEATURES} of {checkpoint.name} asks for dither or do_normalize.")
    frames = stated["chunk_length"] * stated["sampling_rate"] // stated["hop_length"]
    if (stated["feature_size"], frames) != sizes:
        raise CheckpointError(
            f"{FEATURES} of {checkpoint.name} makes windows of {stated['feature_size']} bins and {frames:,} frames, "
            f"and its config reads {sizes[0]} and {sizes[1]:,}; one is wrong."
        )
    return stated


def _stated(checkpoint: Checkpoint) -> dict[str, Any]:
    """What generation_config.json says; transformers drops what is for Whisper alone."""
    return _json(checkpoint, SETTINGS) if (checkpoint.directory / SETTINGS).exists() else {}


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    from tokenizers import Tokenizer

    path = checkpoint.directory / "tokenizer.json"
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True) if path.is_file() else {}


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint.directory / name).read_text(encoding="utf-8")))
    except (OSError, ValueError) as problem:
        raise CheckpointError(
            f"{name} of {checkpoint.name} cannot be read ({problem}); copy it into the checkpoint."
        ) from None


SPEECH = SourceKind(
    task=TASK,
    auto="AutoModelForSpeechSeq2Seq",
    model_types=MODEL_TYPES,
    argument="input_features",
    inputs=_inputs,
    num_positions=lambda config: int(config.max_source_positions),
    positions=positions_of,
    sources=_sources,
    settings=_settings,
    has_remarks=False,  # what Whisper's settings have beside sampling is in `settings`
)
