"""Speech recognition by an encoder-decoder: both graphs, compared with transformers on every step."""

from pathlib import Path
from typing import Any

import numpy as np

from piston.checkpoint.architectures import SPEECH_TYPES
from piston.checkpoint.checkpoint import Checkpoint
from piston.checkpoint.generation_defaults import HARMLESS_TO_GREEDY, GenerationDefaults, not_applied
from piston.checkpoint.json_files import is_token_id, read_object, read_optional
from piston.core.bundle.interface import BATCH, TensorSpec
from piston.core.bundle.manifest import Manifest
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.job import ExportJob
from piston.export.source_models import SourceKind, decoder_start, export_encoder_decoder, summary
from piston.runtime.audio.reading import RATES
from piston.runtime.backends.engine import Source

TASK = "automatic-speech-recognition"
FEATURE_NAMES = ("feature_size", "sampling_rate", "n_fft", "hop_length", "chunk_length")
FEATURES, SETTINGS = "preprocessor_config.json", "generation_config.json"
APPLIED = {"begin_suppress_tokens", "suppress_tokens"}  # of the settings of sampling
STRIDE = 2  # frames of audio that become one position: the encoder's second convolution

__all__ = ["export", "summary"]


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
    stated, vocabulary = read_optional(checkpoint.directory / SETTINGS), _vocabulary(checkpoint)
    no_timestamps = stated.get("no_timestamps_token_id", vocabulary.get("<|notimestamps|>"))
    if no_timestamps is None:
        raise CheckpointError(f"{checkpoint.name} names no no_timestamps_token_id; add it to {SETTINGS}.")
    start, ends = decoder_start(checkpoint, model), model.generation_config.eos_token_id
    speech = {
        "start": start,
        "end": ends[0] if isinstance(ends, list) and ends else ends,
        "no_timestamps": no_timestamps,
        "previous": stated.get("prev_sot_token_id", vocabulary.get("<|startofprev|>")),
        "no_speech": vocabulary.get("<|nospeech|>", vocabulary.get("<|nocaptions|>")),
        "languages": {
            token.strip("<|>"): number for token, number in _numbers(checkpoint, stated, "lang_to_id").items()
        },
        "tasks": _numbers(checkpoint, stated, "task_to_id"),
        "latest_start": stated.get("max_initial_timestamp_index"),
        "context": int(model.config.max_target_positions),
    }
    _check_tokens(checkpoint, speech, int(model.get_output_embeddings().weight.shape[0]))
    return {
        "decoder_start": [start],
        "speech": speech,
        "alignment_heads": _alignment_heads(checkpoint, model.config, stated.get("alignment_heads")),
        "features": _features(checkpoint, _sizes(model.config)),
    }


def _numbers(checkpoint: Checkpoint, stated: dict[str, Any], name: str) -> dict[str, Any]:
    found = stated.get(name) or {}
    if not isinstance(found, dict):
        raise CheckpointError(f"{name} in {SETTINGS} of {checkpoint.name} must have token ids by name; repair it.")
    return found


def _check_tokens(checkpoint: Checkpoint, speech: dict[str, Any], vocab_size: int) -> None:
    """Raise CheckpointError for a token that the model does not have: engines would read beyond its tables."""
    own = [(name, speech[name]) for name in ("start", "end", "no_timestamps", "previous", "no_speech")]
    for name, token_id in [*own, *speech["languages"].items(), *speech["tasks"].items()]:
        is_left_out = token_id is None and name in {"previous", "no_speech"}
        if not is_left_out and not is_token_id(token_id, vocab_size):
            raise CheckpointError(
                f"The special token {name!r} of {checkpoint.name} is {token_id!r}, and the model has {vocab_size:,} "
                f"tokens; repair {SETTINGS}."
            )
    latest = speech["latest_start"]
    if latest is not None and (not isinstance(latest, int) or latest < 0):
        raise CheckpointError(f"max_initial_timestamp_index of {checkpoint.name} is {latest!r}; repair {SETTINGS}.")


def _alignment_heads(checkpoint: Checkpoint, config: Any, stated: Any) -> list[list[int]] | None:
    """Pairs of a decoder's layer and one of its heads; raises CheckpointError for others."""
    if stated is None:
        return None
    sizes = int(config.decoder_layers), int(config.decoder_attention_heads)
    pairs = stated if isinstance(stated, list) else [stated]
    for pair in pairs:
        is_pair = isinstance(pair, list) and len(pair) == len(sizes)
        if not is_pair or not all(is_token_id(*each) for each in zip(pair, sizes, strict=True)):
            raise CheckpointError(
                f"alignment_heads of {checkpoint.name} has {pair!r:.60}, and the decoder has {sizes[0]} layers of "
                f"{sizes[1]} heads; repair {SETTINGS}."
            )
    return pairs


def _features(checkpoint: Checkpoint, sizes: tuple[int, int]) -> dict[str, Any]:
    """What piston.runtime.audio.log_mel needs to know; raises CheckpointError where it is not the model's."""
    found = read_object(checkpoint.directory / FEATURES)
    stated = dict[str, int]()
    for name in FEATURE_NAMES:
        value = found.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(
                f"{name} in {FEATURES} of {checkpoint.name} is {value!r}; it must be an integer of 1 or more. Copy the "
                "original."
            )
        stated[name] = value
    if unknown := next((name for name in ("dither", "do_normalize", "padding_value") if found.get(name)), None):
        raise UnsupportedModelError(f"{FEATURES} of {checkpoint.name} asks for {unknown}, which Piston does not have.")
    if not RATES[0] <= stated["sampling_rate"] <= RATES[1] or stated["n_fft"] > stated["sampling_rate"]:
        raise CheckpointError(
            f"{FEATURES} of {checkpoint.name} states {stated['sampling_rate']:,} samples a second, and spectra of "
            f"{stated['n_fft']:,}; they must be {RATES[0]:,} to {RATES[1]:,} a second, and a second at most."
        )
    frames = stated["chunk_length"] * stated["sampling_rate"] // stated["hop_length"]
    if (stated["feature_size"], frames) != sizes:
        raise CheckpointError(
            f"{FEATURES} of {checkpoint.name} makes windows of {stated['feature_size']} bins and {frames:,} frames, "
            f"and its config reads {sizes[0]} and {sizes[1]:,}; one is wrong."
        )
    return stated


def _vocabulary(checkpoint: Checkpoint) -> dict[str, int]:
    from tokenizers import Tokenizer

    path = checkpoint.directory / "tokenizer.json"
    return Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True) if path.is_file() else {}


def _remarks(defaults: GenerationDefaults, config: Any) -> list[str]:
    """On settings of sampling and length; what else Whisper's settings have is in the manifest's settings."""
    applied, longest = set(APPLIED), defaults.sampling.get("max_length")
    if isinstance(longest, int) and longest >= int(config.max_target_positions):
        applied.add("max_length")
    if not defaults.sampling.get("do_sample"):
        applied |= HARMLESS_TO_GREEDY - {"max_length", "max_new_tokens"}
    return not_applied({name: value for name, value in defaults.sampling.items() if name not in applied})


SPEECH = SourceKind(
    task=TASK,
    auto="AutoModelForSpeechSeq2Seq",
    model_types=SPEECH_TYPES,
    argument="input_features",
    inputs=_inputs,
    num_positions=lambda config: int(config.max_source_positions),
    positions=positions_of,
    sources=_sources,
    settings=_settings,
    remarks=_remarks,
)
