"""Sentence embeddings: an encoder with its pooling, compared with transformers row by row."""

import dataclasses
import gc
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from piston.checkpoint.checkpoint import Checkpoint, check_weights, load_config, load_model, translated
from piston.checkpoint.tokenizer import FILE_NAME, save_tokenizer, special_tokens
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import BATCH, ENCODER, GraphInterface, TensorSpec
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec, record_files
from piston.core.errors import MisuseError, ParityError
from piston.export.encoder import (
    CanonicalEncoder,
    check_encoder,
    check_finite,
    inputs_of,
    positions_of,
    trace_encoder,
)
from piston.export.job import ExportJob, round_graph, save_graph
from piston.export.pooling import MODULES, SentenceModules, read_modules
from piston.runtime.backends.session import OrtOptions, OrtSession
from piston.runtime.ragged import padded

TASK = "feature-extraction"
AUTO = "AutoModel"
# Not read for token embeddings: the classifier's pooler, and the heads of what the model was trained by.
UNUSED = ("pooler.", "cls.", "lm_head.", "vocab_", "discriminator_predictions.", "predictions.")
LENGTHS = (1, 2, 3, 8, 21, 60)  # tokens; the rows of one ragged batch
ABSOLUTE, RELATIVE = 1e-4, 1e-4  # float32: the larger of the two, RELATIVE times the largest value


def recognises(checkpoint: Checkpoint) -> bool:
    """A checkpoint of sentence-transformers, or a bare encoder."""
    if checkpoint.gguf is not None:
        return False
    if (checkpoint.directory / MODULES).is_file():
        return True
    try:
        config = json.loads((checkpoint.directory / "config.json").read_text(encoding="utf-8"))
        named = config.get("architectures") or [""]
        check_encoder(type("Config", (), {"model_type": "", **config}))
    except Exception:  # noqa: BLE001 - whoever exports it tells what is wrong
        return False
    return str(named[0]).endswith("Model")


def summary(manifest: Manifest) -> str:
    """How near the graph is to transformers."""
    parity = manifest.made_by["parity"]
    return f"embeddings within {parity['max_abs']:.1e} over {parity['rows']} rows, alone and in one batch"


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph is from transformers: recorded in the manifest."""

    max_abs: float
    bound: float
    rows: int


def export(job: ExportJob, work: Path) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does."""
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    if options.chat_template is not None:
        raise MisuseError(f"--chat-template is for language models; {checkpoint.name} is for {TASK}.")
    config = load_config(checkpoint, check_encoder)
    modules = read_modules(checkpoint)
    job.remarks += modules.remarks
    dtype = job.dtype_of(check_weights(checkpoint, config, AUTO))
    with progress.phase("loading the checkpoint"):
        model = load_model(checkpoint, AUTO, UNUSED)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer = save_tokenizer(checkpoint, work)
        if modules.is_lowercase:
            _write_lowercase(work / FILE_NAME)
    positions = positions_of(model, [modules.max_length, _limit_of(tokenizer)], options.context)
    encoder = CanonicalEncoder(model, modules.head)
    with progress.phase("asking transformers for reference embeddings"):
        rows = _rows(int(config.vocab_size), positions)
        expected = reference_of(encoder, rows)
    pooled = TensorSpec(name="pooled", dtype="float32", shape=(BATCH, expected.shape[1]), role="pooled")
    interface = GraphInterface(inputs=inputs_of(model), outputs=(pooled,))
    with progress.phase("tracing to ONNX"), translated(f"{type(model).__name__} cannot be traced to ONNX"):
        save_graph(trace_encoder(encoder, interface), work)
    architecture = type(model).__name__
    del model, encoder
    gc.collect()
    parity = None
    if options.check_parity:
        with progress.phase("comparing ONNX Runtime with transformers"):
            parity = dataclasses.asdict(check_parity(work / GRAPH, interface, rows, expected))
    if dtype != "float32":
        with progress.phase(f"rounding to {dtype}"):
            round_graph(work, dtype)
    with progress.phase("hashing"):
        manifest = Manifest(
            kind="model",
            task=TASK,
            model=ModelSpec(
                name=checkpoint.name,
                architecture=architecture,
                num_layers=int(config.num_hidden_layers),
                hidden_size=int(config.hidden_size),
                vocab_size=int(config.vocab_size),
                max_positions=positions,
                dtype=dtype,
            ),
            graphs={ENCODER: interface},
            tokenizer=TokenizerSpec(pad_token_id=tokenizer.pad_token_id, special_tokens=special_tokens(tokenizer)),
            files=record_files(work),
            settings=settings_of(modules),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest


def settings_of(modules: SentenceModules) -> dict[str, Any]:
    """What the runtime needs to know beside the graph."""
    return {
        "pooling": list(modules.head.modes),
        "normalized": modules.is_normalized,
        "prompts": dict(modules.prompts),
        "default_prompt": modules.default_prompt,
    }


@torch.no_grad()
def reference_of(encoder: CanonicalEncoder, rows: list[list[int]]) -> NDArray[np.float32]:
    """Embeddings [rows, dim] by the unmodified model, each row alone and without padding."""
    found = []
    for row in rows:
        hidden = encoder.model(input_ids=torch.tensor([row]), attention_mask=torch.ones(1, len(row))).last_hidden_state
        found.append(encoder.head(hidden, torch.ones(1, len(row), dtype=torch.bool)))
    pooled = torch.cat(found)
    check_finite(pooled, "embeddings")
    return np.asarray(pooled.numpy(), np.float32)


def check_parity(path: Path, interface: GraphInterface, rows: list[list[int]], expected: NDArray[np.float32]) -> Parity:
    """Run the written graph on the rows in one padded batch, and each alone.

    Raises:
        ParityError: an embedding is beyond the bound.
    """
    bound, worst = max(ABSOLUTE, RELATIVE * float(np.abs(expected).max())), 0.0
    session = OrtSession.open(path, interface, OrtOptions(optimize=True, prepack=False))
    together = session.run(padded(rows))["pooled"]
    alone = [session.run(padded([row]))["pooled"][0] for row in rows]
    for index, wanted in enumerate(expected):
        for found, how in ((together[index], "in a batch"), (alone[index], "alone")):
            worst = max(worst, float(np.abs(found - wanted).max()))
            if not worst <= bound:
                raise ParityError(
                    f"The exported graph parts from transformers on a row of {len(rows[index])} tokens {how}: "
                    f"embeddings differ by {worst:.3g}, allowed are {bound:.3g}."
                )
    session.close()
    return Parity(worst, bound, len(rows))


def _rows(vocab_size: int, positions: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    sizes = sorted({min(length, positions) for length in LENGTHS})
    return [rng.integers(min(5, vocab_size - 1), vocab_size, size).tolist() for size in sizes]


def _limit_of(tokenizer: Any) -> int | None:
    """Tokens that the tokenizer's own file allows; a number beyond all models stands for none."""
    limit = int(min(tokenizer.model_max_length, 1 << 30))
    return limit if 1 < limit < 1 << 30 else None


def _write_lowercase(path: Path) -> None:
    """Let tokenizer.json write texts small before anything else, as sentence-transformers does with do_lower_case."""
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(path))
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    tokenizer.save(str(path), pretty=False)
