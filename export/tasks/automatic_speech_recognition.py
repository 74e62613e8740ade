"""Speech recognition: Whisper's encoder and decoder, compared with transformers on every step."""

import dataclasses
import gc
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from piston.checkpoint.checkpoint import Checkpoint, check_weights, load_config, load_model, translated
from piston.checkpoint.generation_defaults import check_readable, read_defaults
from piston.checkpoint.tokenizer import write_tokenizer
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import (
    BATCH,
    DECODER,
    ENCODER,
    TensorSpec,
    decoder_interface,
    source_encoder_interface,
)
from piston.core.bundle.manifest import Manifest, ModelSpec, record_files
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.encoder_decoder import states_of, trace_encoder_decoder
from piston.export.job import ExportJob, round_graph, save_graph
from piston.export.source_parity import check_source_parity, take_source_reference
from piston.runtime.backends.engine import Source

TASK = "automatic-speech-recognition"
AUTO = "AutoModelForSpeechSeq2Seq"
MODEL_TYPES = ("whisper",)
FEATURES = ("feature_size", "sampling_rate", "n_fft", "hop_length", "chunk_length")
NUM_SOURCES = 2  # of the parity check


def recognises(checkpoint: Checkpoint) -> bool:
    """A speech model of a supported type."""
    if checkpoint.gguf is not None:
        return False
    try:
        config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") in MODEL_TYPES
    except (OSError, ValueError, AttributeError):
        return False  # whoever exports it tells what is wrong


def summary(manifest: Manifest) -> str:
    """How near the graphs are to transformers."""
    parity = manifest.made_by["parity"]
    return (
        f"cross states within {parity['states_max_abs']:.1e}, logits within {parity['max_abs']:.1e} over "
        f"{parity['steps']} decode steps"
    )


def check_speech(config: Any) -> None:
    """Raise UnsupportedModelError for the config of what is no speech model that Piston exports."""
    if config.model_type not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"Speech models of model type {config.model_type!r} are not supported; supported: {', '.join(MODEL_TYPES)}."
        )


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    for option, given in (("--chat-template", options.chat_template), ("--context", options.context)):
        if given is not None:
            raise MisuseError(f"{option} is for language models; {checkpoint.name} is for {TASK}.")
    config = load_config(checkpoint, check_speech)
    check_readable(checkpoint)
    features = features_of(checkpoint)
    dtype = job.dtype_of(check_weights(checkpoint, config, AUTO))
    with progress.phase("loading the checkpoint"):
        model: Any = load_model(checkpoint, AUTO)
    defaults = read_defaults(checkpoint, model.generation_config)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer, remarks = write_tokenizer(checkpoint, config, defaults, work)
    job.remarks += [*remarks, *defaults.remarks]
    speech = speech_tokens(checkpoint, model, _vocabulary(work))
    vocab_size, positions = int(model.get_output_embeddings().weight.shape[0]), int(config.max_target_positions)
    frames = 2 * int(config.max_source_positions)
    _check_frames(checkpoint, features, frames)
    shape = (int(config.num_mel_bins), frames)
    with translated(f"transformers cannot run {checkpoint.name} itself"):
        example = torch.zeros(1, *shape)
        own, cross = states_of(model, {"input_features": example}, int(config.max_source_positions))
        with progress.phase("asking transformers for reference answers"):
            sources = _sources(shape, int(config.max_source_positions))
            start = [speech["start"]]
            references = (
                take_source_reference(model, "input_features", sources, start, vocab_size, positions)
                if options.check_parity
                else None
            )
    audio = (TensorSpec(name="audio", dtype="float32", shape=(BATCH, *shape), role="audio"),)
    encoder, decoder = source_encoder_interface(cross, audio), decoder_interface(own, vocab_size, cross)
    architecture = type(model).__name__
    with progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
        graphs = trace_encoder_decoder(model, encoder, decoder, {"audio": torch.zeros(2, *shape)}, positions)
        del model
        gc.collect()
        save_graph(graphs.encoder, work / ENCODER, stack=ENCODER)
        save_graph(graphs.decoder, work / DECODER)
        del graphs
    parity = None
    if references is not None:
        with progress.phase("comparing ONNX Runtime with transformers"):
            files = (work / ENCODER / GRAPH, encoder), (work / DECODER / GRAPH, own, cross)
            parity = dataclasses.asdict(check_source_parity(*files, references))
    if dtype != "float32":
        with progress.phase(f"rounding to {dtype}"):
            round_graph(work / ENCODER, dtype, widen=False)
            round_graph(work / DECODER, dtype)
            own, cross = own.with_dtype(dtype), cross.with_dtype(dtype)
    with progress.phase("hashing"):
        manifest = Manifest(
            kind="model",
            task=TASK,
            model=ModelSpec(
                name=checkpoint.name,
                architecture=architecture,
                num_layers=own.num_layers,
                hidden_size=int(config.d_model),
                vocab_size=vocab_size,
                max_positions=positions,
                dtype=dtype,
            ),
            graphs={
                ENCODER: source_encoder_interface(cross, audio),
                DECODER: decoder_interface(own, vocab_size, cross),
            },
            tokenizer=tokenizer,
            generation=defaults.sampling,
            settings={"features": features, "speech": speech | {"context": positions}},
            files=record_files(work),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest


def features_of(checkpoint: Checkpoint) -> dict[str, int]:
    """The settings of the log-mel frames; raises CheckpointError."""
    path = checkpoint.directory / "preprocessor_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        settings = {name: int(found[name]) for name in FEATURES}
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise CheckpointError(
            f"{path} does not describe the log-mel frames ({problem!r}); copy it from the model's repository."
        ) from None
    if found.get("dither") or found.get("do_normalize"):
        raise UnsupportedModelError(f"{path} asks for dither or do_normalize, which Piston does not compute.")
    return settings


def speech_tokens(checkpoint: Checkpoint, model: Any, vocabulary: dict[str, int]) -> dict[str, Any]:
    """Arguments of piston.runtime.audio.transcribe.SpeechTokens, from generation_config.json and the tokenizer."""
    config = model.generation_config
    found = {
        "start": getattr(config, "decoder_start_token_id", None),
        "end": config.eos_token_id,
        "no_timestamps": getattr(config, "no_timestamps_token_id", None),
    }
    if missing := [name for name, token_id in found.items() if not isinstance(token_id, int)]:
        name = {"start": "decoder_start_token_id", "end": "eos_token_id"}.get(missing[0], "no_timestamps_token_id")
        raise CheckpointError(f"generation_config.json of {checkpoint.name} names no {name}; add it.")
    no_speech = next((vocabulary[name] for name in ("<|nospeech|>", "<|nocaptions|>") if name in vocabulary), None)
    languages = getattr(config, "lang_to_id", None) or {}
    is_multilingual = getattr(config, "is_multilingual", bool(languages))
    return found | {
        "previous": vocabulary.get("<|startofprev|>"),
        "no_speech": no_speech,
        "languages": {name.strip("<|>"): int(token_id) for name, token_id in languages.items()}
        if is_multilingual
        else {},
        "tasks": {name: int(token_id) for name, token_id in (getattr(config, "task_to_id", None) or {}).items()},
        "latest_start": getattr(config, "max_initial_timestamp_index", None),
    }


def _vocabulary(work: Path) -> dict[str, int]:
    from tokenizers import Tokenizer

    return dict(Tokenizer.from_file(str(work / "tokenizer.json")).get_vocab(with_added_tokens=True))


def _check_frames(checkpoint: Checkpoint, features: dict[str, int], frames: int) -> None:
    stated = features["chunk_length"] * features["sampling_rate"] // features["hop_length"]
    if stated != frames:
        raise CheckpointError(
            f"preprocessor_config.json of {checkpoint.name} makes {stated:,} frames of a window, and its config reads "
            f"{frames:,}; one is wrong."
        )


def _sources(shape: tuple[int, int], num_positions: int) -> list[Source]:
    """Random log-mel frames, as loud and as quiet as they may be."""
    rng = np.random.default_rng(1)
    frames = [rng.uniform(-1, 1, (1, *shape)).astype(np.float32) for _ in range(NUM_SOURCES)]
    frames[-1][:, :, shape[1] // 2 :] = frames[-1].min()
    return [Source({"audio": array}, index, num_positions) for index, array in enumerate(frames)]
