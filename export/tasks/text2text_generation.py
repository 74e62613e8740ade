"""Encoder-decoders from text to text: both graphs, compared with transformers on every step."""

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
from piston.core.bundle.interface import DECODER, ENCODER, decoder_interface, source_encoder_interface
from piston.core.bundle.manifest import Manifest, ModelSpec, record_files
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.encoder_decoder import states_of, trace_encoder_decoder
from piston.export.job import ExportJob, round_graph, save_graph
from piston.export.positions import is_position_embedding
from piston.export.source_parity import check_source_parity, take_source_reference
from piston.runtime.backends.engine import Source

TASK = "text2text-generation"
AUTO = "AutoModelForSeq2SeqLM"
# Seeded models of these model types match transformers (tests/export/test_encoder_decoder.py runs this table).
MODEL_TYPES = ("bart", "m2m_100", "marian", "mbart", "mt5", "pegasus", "t5", "umt5")
LENGTHS = (1, 3, 8, 21)  # tokens of the sources, one batch
UNLIMITED = 512  # positions of models that have no table of positions, unless their tokenizer or --context says more


def recognises(checkpoint: Checkpoint) -> bool:
    """An encoder-decoder of a supported type."""
    if checkpoint.gguf is not None:
        return False
    try:
        config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
        return config.get("model_type") in MODEL_TYPES and bool(config.get("is_encoder_decoder", True))
    except (OSError, ValueError, AttributeError):
        return False  # whoever exports it tells what is wrong


def summary(manifest: Manifest) -> str:
    """How near the graphs are to transformers."""
    parity = manifest.made_by["parity"]
    return (
        f"cross states within {parity['states_max_abs']:.1e}, logits within {parity['max_abs']:.1e} over "
        f"{parity['steps']} decode steps"
    )


def check_encoder_decoder(config: Any) -> None:
    """Raise UnsupportedModelError for the config of what is no encoder-decoder that Piston exports."""
    if config.model_type not in MODEL_TYPES:
        raise UnsupportedModelError(
            f"Encoder-decoders of model type {config.model_type!r} are not supported; supported: "
            f"{', '.join(MODEL_TYPES)}."
        )


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    if options.chat_template is not None:
        raise MisuseError(f"--chat-template is for language models; {checkpoint.name} is for {TASK}.")
    config = load_config(checkpoint, check_encoder_decoder)
    check_readable(checkpoint)
    dtype = job.dtype_of(check_weights(checkpoint, config, AUTO))
    with progress.phase("loading the checkpoint"):
        model: Any = load_model(checkpoint, AUTO)
    defaults = read_defaults(checkpoint, model.generation_config)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer, remarks = write_tokenizer(checkpoint, config, defaults, work)
    job.remarks += [*remarks, *defaults.remarks]
    positions = positions_of(model, options.context)
    vocab_size, architecture = int(model.get_output_embeddings().weight.shape[0]), type(model).__name__
    start = decoder_start(checkpoint, model)
    with translated(f"transformers cannot run {checkpoint.name} itself"):
        own, cross = states_of(model, {"input_ids": torch.ones(1, 2, dtype=torch.int64)}, None)
        with progress.phase("asking transformers for reference answers"):
            sources = _sources(int(config.vocab_size), positions)
            references = (
                take_source_reference(model, "input_ids", sources, [start], vocab_size, positions)
                if options.check_parity
                else None
            )
    encoder, decoder = source_encoder_interface(cross), decoder_interface(own, vocab_size, cross)
    example = {"input_ids": torch.full((2, 5), 3), "lengths": torch.tensor([5, 3])}
    with progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
        graphs = trace_encoder_decoder(model, encoder, decoder, example, positions)
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
                hidden_size=int(config.hidden_size),
                vocab_size=vocab_size,
                max_positions=positions,
                dtype=dtype,
            ),
            graphs={
                ENCODER: source_encoder_interface(cross),
                DECODER: decoder_interface(own, vocab_size, cross),
            },
            tokenizer=tokenizer,
            generation=defaults.sampling,
            settings={"decoder_start": [start]},
            files=record_files(work),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest


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


def decoder_start(checkpoint: Checkpoint, model: Any) -> int:
    """The token that begins every answer, as transformers' generate chooses it; raises CheckpointError."""
    for holder, name in (
        (model.generation_config, "decoder_start_token_id"),
        (model.config, "decoder_start_token_id"),
        (model.generation_config, "bos_token_id"),
        (model.config, "bos_token_id"),
    ):
        if isinstance(found := getattr(holder, name, None), int):
            return found
    raise CheckpointError(f"{checkpoint.name} names no decoder_start_token_id; add it to generation_config.json.")


def _sources(vocab_size: int, positions: int) -> list[Source]:
    rng = np.random.default_rng(1)
    sizes = sorted({min(length, positions) for length in LENGTHS})
    return [Source.of_text(rng.integers(min(5, vocab_size - 1), vocab_size, size).tolist()) for size in sizes]
