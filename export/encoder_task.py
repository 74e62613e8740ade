"""An encoder checkpoint becomes a model directory: what the tasks of encoders have in common.

A task says by `EncoderTask` which module of transformers it reads and what its graph gives; here the checkpoint is
loaded, traced, and compared with transformers on rows of tokens and on pairs.
"""

import dataclasses
import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from piston.checkpoint.checkpoint import Checkpoint, check_weights, load_config, load_model, translated
from piston.checkpoint.tokenizer import FILE_NAME, save_tokenizer, special_tokens
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import BATCH, ENCODER, GraphInterface, Role, TensorSpec
from piston.core.bundle.manifest import Manifest, ModelSpec, TokenizerSpec, record_files
from piston.core.errors import CheckpointError, MisuseError, ParityError
from piston.export.encoder import (
    CanonicalEncoder,
    check_encoder,
    check_finite,
    inputs_of,
    positions_of,
    trace_encoder,
)
from piston.export.heads import canonical
from piston.export.job import ExportJob, check_positions, round_graph, save_graph
from piston.runtime.backends.session import OrtOptions, OrtSession
from piston.runtime.ragged import padded

LENGTHS = (1, 2, 3, 8, 21, 60)  # tokens; the rows of one ragged batch
ABSOLUTE, RELATIVE = 1e-4, 1e-4  # float32: the larger of the two, RELATIVE times the largest value
# Poolers that checkpoints store and heads on tokens do not read; each class of transformers has its prefix.
PREFIXES = ("albert", "bert", "camembert", "deberta", "electra", "mpnet", "roberta")
POOLERS = tuple(f"{prefix}.pooler." for prefix in PREFIXES)
Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderTask:
    """What a task reads of a checkpoint, and what its graph gives.

    `per_token` outputs are [batch, seq, width], others [batch, width].
    """

    name: str
    auto: str  # the class of transformers that loads the checkpoint
    head: nn.Module  # see piston.export.heads
    output: str  # name and role of the graph's output
    per_token: bool = False
    unused: tuple[str, ...] = ()  # beginnings of names of tensors that the task does not read
    settings: Mapping[str, Any] = field(default_factory=dict)  # for the manifest
    max_length: int | None = None  # tokens of a text, its special tokens included
    is_lowercase: bool = False  # texts are lower-cased first
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Rows:
    """Token ids and segments of some rows."""

    ids: list[list[int]]
    types: list[list[int]]


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph is from transformers: recorded in the manifest."""

    max_abs: float
    bound: float
    rows: int


def summary(manifest: Manifest) -> str:
    """How near the graph is to transformers."""
    parity = manifest.made_by["parity"]
    (output,) = manifest.graphs[ENCODER].outputs
    what = "embeddings" if output.role == "pooled" else output.name
    return f"{what} within {parity['max_abs']:.1e} over {parity['rows']} rows, alone and in one batch"


def export_encoder(job: ExportJob, work: Path, task_of: Callable[[Checkpoint, Any], EncoderTask]) -> Manifest:
    """Write the model directory; raises as `piston.export.export_model` does.

    `task_of` reads what the task needs of the checkpoint and its config, before any weight is read.
    """
    checkpoint, options, progress = job.checkpoint, job.options, job.progress
    config = load_config(checkpoint, check_encoder)
    with translated(f"What {checkpoint.name} says of its task cannot be read"):
        task = task_of(checkpoint, config)
    if options.chat_template is not None:
        raise MisuseError(f"--chat-template is for language models; {checkpoint.name} is for {task.name}.")
    job.remarks += task.remarks
    dtype = job.dtype_of(check_weights(checkpoint, config, task.auto))
    with progress.phase("loading the checkpoint"):
        model = load_model(checkpoint, task.auto, task.unused)
        check_finite(model, checkpoint.name)
    with translated(f"The tokenizer of {checkpoint.name} cannot be used"):
        tokenizer = save_tokenizer(checkpoint, work)
        if task.is_lowercase:
            _write_lowercase(work / FILE_NAME)
        limit = _limit_of(tokenizer)
    positions = positions_of(model, [task.max_length, limit], options.context)
    check_positions(positions, max(2, tokenizer.num_special_tokens_to_add() + 1))
    inputs = inputs_of(model, tokenizer.model_input_names)
    with progress.phase("asking transformers for reference outputs"):
        rows = _rows(int(config.vocab_size), positions)
        expected = reference_of(model, task.head, rows, inputs)
    interface = GraphInterface(inputs=inputs, outputs=(_output(task, expected[0].shape[-1]),))
    architecture = type(model).__name__
    encoder = CanonicalEncoder(*canonical(model, task.head))
    with progress.phase("tracing to ONNX"), translated(f"{architecture} cannot be traced to ONNX"):
        save_graph(trace_encoder(encoder, interface), work)
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
            task=task.name,
            model=ModelSpec(
                name=checkpoint.name,
                architecture=architecture,
                num_layers=int(config.num_hidden_layers),
                hidden_size=int(config.hidden_size),
                vocab_size=int(config.vocab_size),
                max_positions=positions,
                dtype=dtype,
                num_heads=int(config.num_attention_heads),
            ),
            graphs={ENCODER: interface},
            tokenizer=TokenizerSpec(pad_token_id=tokenizer.pad_token_id, special_tokens=special_tokens(tokenizer)),
            files=record_files(work),
            settings=dict(task.settings),
            made_by=job.provenance(parity),
        )
    manifest.write(work)
    return manifest


@torch.no_grad()
def reference_of(model: nn.Module, head: nn.Module, rows: Rows, inputs: Sequence[TensorSpec]) -> list[Array]:
    """The output [width] or [tokens, width] of the unmodified model for each row, alone and without padding.

    Raises:
        CheckpointError: transformers itself computes NaN or infinity.
    """
    has_types = any(tensor.role == "token_types" for tensor in inputs)
    found = []
    for ids, types in zip(rows.ids, rows.types, strict=True):
        segments = {"token_type_ids": torch.tensor([types])} if has_types else {}
        output = model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), **segments)
        found.append(np.asarray(head(output, torch.ones(1, len(ids), dtype=torch.bool))[0].numpy(), np.float32))
    if not all(np.isfinite(output).all() for output in found):
        raise CheckpointError("transformers computes outputs that are not finite; the checkpoint is damaged.")
    return found


def check_parity(path: Path, interface: GraphInterface, rows: Rows, expected: Sequence[Array]) -> Parity:
    """Run the written graph on the rows in one padded batch, and each alone.

    Raises:
        ParityError: an output is beyond the bound.
    """
    (output,) = interface.outputs
    bound, worst = max(ABSOLUTE, RELATIVE * max(float(np.abs(row).max()) for row in expected)), 0.0
    with closing(OrtSession.open(path, interface, OrtOptions(optimize=True, prepack=False))) as session:
        together = session.run(padded(rows.ids, rows.types))[output.name]
        each = [session.run(padded([row], [types])) for row, types in zip(rows.ids, rows.types, strict=True)]
    for index, wanted in enumerate(expected):
        alone = each[index][output.name][0]
        for found, how in ((together[index], "in a batch"), (alone, "alone")):
            same = found[: len(wanted)] if wanted.ndim > 1 else found  # what is behind a row's tokens is padding
            worst = max(worst, float(np.abs(same - wanted).max()))
            if not worst <= bound:
                raise ParityError(
                    f"The exported graph differs from transformers on a row of {len(rows.ids[index])} tokens {how}: "
                    f"{output.name} by {worst:.3g}, allowed are {bound:.3g}."
                )
    return Parity(worst, bound, len(expected))


def _output(task: EncoderTask, width: int) -> TensorSpec:
    shape = (BATCH, "seq", width) if task.per_token else (BATCH, width)
    role: Role = "pooled" if task.output == "pooled" else "logits"
    return TensorSpec(name=task.output, dtype="float32", shape=shape, role=role)


def _rows(vocab_size: int, positions: int) -> Rows:
    """Random tokens; the second half of each row is of the second segment."""
    rng = np.random.default_rng(0)
    sizes = sorted({min(length, positions) for length in LENGTHS})
    ids = [rng.integers(min(5, vocab_size - 1), vocab_size, size).tolist() for size in sizes]
    return Rows(ids, [[int(2 * place >= size) for place in range(size)] for size in sizes])


def _limit_of(tokenizer: Any) -> int | None:
    """Tokens that the tokenizer's own file allows; a number beyond all models stands for none."""
    limit = int(min(tokenizer.model_max_length, 1 << 30))
    return limit if 1 < limit < 1 << 30 else None


def _write_lowercase(path: Path) -> None:
    """Let tokenizer.json lower-case texts before anything else, as sentence-transformers does with do_lower_case."""
    from tokenizers import Tokenizer, normalizers

    tokenizer = Tokenizer.from_file(str(path))
    steps = [] if tokenizer.normalizer is None else [tokenizer.normalizer]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), *steps])
    tokenizer.save(str(path), pretty=False)
