"""Language models: a decoder whose every step is compared with transformers."""

import dataclasses
import gc
from pathlib import Path
from typing import Any

from piston.checkpoint.checkpoint import (
    cache_spec_of,
    check_weights,
    load_config,
    load_model,
    translated,
)
from piston.checkpoint.generation_defaults import check_readable, read_defaults
from piston.checkpoint.tokenizer import write_tokenizer
from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import Manifest, ModelSpec, record_files
from piston.export.job import ExportJob, check_positions, round_graph, save_graph
from piston.export.parity import check_parity, take_reference
from piston.export.rotary import positions_of
from piston.export.trace import trace

LEAST_POSITIONS = 2  # a prompt of one token, and one of an answer


def summary(manifest: Manifest) -> str:
    """How near the graph is to transformers."""
    parity = manifest.made_by["parity"]
    return f"logits within {parity['max_abs']:.1e} over {parity['steps']} decode steps"


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    config = load_config(checkpoint)
    positions = positions_of(config, options.context)
    check_positions(positions, LEAST_POSITIONS)
    check_readable(checkpoint)
    dtype = job.dtype_of(check_weights(checkpoint, config))
    with progress.phase("loading the checkpoint"):
        model: Any = load_model(checkpoint)
    runs = f"transformers cannot run {checkpoint.name} itself"
    with translated(runs):
        cache = cache_spec_of(model)
    defaults = read_defaults(checkpoint, model.generation_config)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer, remarks = write_tokenizer(checkpoint, config, defaults, work, options.chat_template)
    job.remarks += [*remarks, *defaults.remarks]
    vocab_size, architecture = int(model.get_output_embeddings().weight.shape[0]), type(model).__name__
    with progress.phase("asking transformers for reference answers"), translated(runs):
        reference = take_reference(model, vocab_size, positions) if options.check_parity else None
    with progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
        save_graph(trace(model, cache, positions), work)
    del model
    gc.collect()
    parity = None
    if reference is not None:
        with progress.phase("comparing ONNX Runtime with transformers"):
            parity = dataclasses.asdict(check_parity(work / GRAPH, cache, reference))
    if dtype != "float32":
        with progress.phase(f"rounding to {dtype}"):
            round_graph(work, dtype)
    with progress.phase("hashing"):
        spec = ModelSpec(
            name=checkpoint.name,
            architecture=architecture,
            num_layers=cache.num_layers,
            hidden_size=int(getattr(config, "hidden_size", None) or config.n_embd),
            vocab_size=vocab_size,
            max_positions=positions,
            dtype=dtype,
        )
        manifest = Manifest.of_decoder(
            kind="model",
            model=spec,
            cache=cache.with_dtype(dtype),
            tokenizer=tokenizer,
            generation=defaults.sampling,
            files=record_files(work),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest
