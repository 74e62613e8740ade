"""The export of encoder-decoders: what their tasks share, whatever the encoder reads."""

import dataclasses
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from piston.checkpoint.checkpoint import Checkpoint, check_weights, load_config, load_model, translated
from piston.checkpoint.generation_defaults import GenerationDefaults, check_readable, read_defaults
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
from piston.export.rotary import LARGEST_TABLE
from piston.export.source_parity import check_source_parity, take_source_reference
from piston.runtime.backends.engine import Source
from piston.runtime.tasks.text2text_generation import BEAMS

# Settings of a checkpoint that encoder-decoders apply next to those of sampling: of beam search, and lengths that count
# the tokens that begin an answer.
APPLIED = (*BEAMS, "max_length", "min_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceKind:
    """What a task knows of its models.

    Args:
        task: its name.
        auto: the class of transformers that loads them.
        model_types: those that a test compares with transformers.
        argument: of the model's forward, which takes the first input of the encoder.
        inputs: of the encoder's graph, by the config.
        num_positions: of every source, where all have as many, by the config.
        positions: of the decoder, by the model and --context.
        sources: a few to compare on, of different lengths where they may have, by the config and the positions.
        settings: the manifest's, by the checkpoint, the model and the tokens that begin an answer.
        remarks: on generation settings that Piston does not apply, by what the checkpoint says and the config.
    """

    task: str
    auto: str
    model_types: Sequence[str]
    argument: str
    inputs: Callable[[Any], tuple[TensorSpec, ...]]
    num_positions: Callable[[Any], int | None]
    positions: Callable[[Any, int | None], int]
    sources: Callable[[Any, int], list[Source]]
    settings: Callable[[Checkpoint, Any], dict[str, Any]]
    remarks: Callable[[GenerationDefaults, Any], Sequence[str]] = lambda defaults, _: defaults.remarks


def summary(manifest: Manifest) -> str:
    """How near the graphs are to transformers."""
    parity = manifest.made_by["parity"]
    return (
        f"cross states within {parity['states_max_abs']:.1e}, logits within {parity['max_abs']:.1e} over "
        f"{parity['steps']} decode steps"
    )


def check_encoder_decoder(config: Any, model_types: Sequence[str]) -> None:
    """Raise UnsupportedModelError for the config of what is no encoder-decoder that Piston exports."""
    if config.model_type not in model_types:
        raise UnsupportedModelError(
            f"Encoder-decoders of model type {config.model_type!r} are not supported; supported: "
            f"{', '.join(model_types)}."
        )


def check_tables(name: str, config: Any) -> None:
    """Raise CheckpointError where a table of positions, which transformers computes, would take gigabytes."""
    for field in ("max_position_embeddings", "max_source_positions", "max_target_positions"):
        positions = getattr(config, field, None) or 0
        if (size := positions * int(config.hidden_size) * 4) > LARGEST_TABLE:
            raise CheckpointError(
                f"{field} in the config of {name} is {positions:,}, whose table would take {size / 1e9:,.1f} GB; "
                "correct config.json."
            )


def export_encoder_decoder(job: ExportJob, work: Path, kind: SourceKind) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    if options.chat_template is not None:
        raise MisuseError(f"--chat-template is for language models; {checkpoint.name} is for {kind.task}.")
    config = load_config(checkpoint, lambda found: check_encoder_decoder(found, kind.model_types))
    check_tables(checkpoint.name, config)
    check_readable(checkpoint)
    dtype = job.dtype_of(check_weights(checkpoint, config, kind.auto))
    with progress.phase("loading the checkpoint"):
        model: Any = load_model(checkpoint, kind.auto)
    defaults = read_defaults(checkpoint, model.generation_config, APPLIED)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer, remarks = write_tokenizer(checkpoint, config, defaults, work)
    job.remarks += [*remarks, *kind.remarks(defaults, config)]
    positions, settings = kind.positions(model, options.context), _settings(checkpoint, model, kind)
    vocab_size, architecture = int(model.get_output_embeddings().weight.shape[0]), type(model).__name__
    sources, inputs = kind.sources(config, positions), kind.inputs(config)
    with translated(f"transformers cannot run {checkpoint.name} itself"):
        given = {kind.argument: torch.from_numpy(next(iter(sources[0].feeds.values())))}
        own, cross = states_of(model, given, kind.num_positions(config))
        references = None
        if options.check_parity:
            with progress.phase("asking transformers for reference answers"):
                start = settings["decoder_start"]
                references = take_source_reference(model, kind.argument, sources, start, vocab_size, positions)
    heads = [(int(layer), int(head)) for layer, head in settings.get("alignment_heads") or ()]
    encoder = source_encoder_interface(cross, inputs)
    decoder = decoder_interface(own, vocab_size, cross, len(heads))
    with progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
        graphs = trace_encoder_decoder(model, encoder, decoder, _example(inputs), positions, alignment_heads=heads)
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
            task=kind.task,
            model=ModelSpec(
                name=checkpoint.name,
                architecture=architecture,
                num_layers=own.num_layers,
                hidden_size=int(config.hidden_size),
                vocab_size=vocab_size,
                max_positions=positions,
                dtype=dtype,
                num_heads=int(config.num_attention_heads),
            ),
            graphs={
                ENCODER: source_encoder_interface(cross, inputs),
                DECODER: decoder_interface(own, vocab_size, cross, len(heads)),
            },
            tokenizer=tokenizer,
            generation=defaults.sampling,
            settings=settings,
            files=record_files(work),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest


def _settings(checkpoint: Checkpoint, model: Any, kind: SourceKind) -> dict[str, Any]:
    with translated(f"What {checkpoint.name} says of its task cannot be read"):
        return kind.settings(checkpoint, model)


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


def _example(inputs: tuple[TensorSpec, ...]) -> dict[str, torch.Tensor]:
    # Sizes differ from one another and from 0 and 1, so that none is taken for a constant or for another.
    rows, positions = 2, 5
    made = {}
    for tensor in inputs:
        sizes = [size if isinstance(size, int) else rows if size == BATCH else positions for size in tensor.shape]
        dtype = torch.float32 if tensor.dtype == "float32" else torch.int64
        made[tensor.name] = torch.full(sizes, positions if tensor.role == "lengths" else 3, dtype=dtype)
    return made
