"""The canonical encoder graph: an unmodified transformers encoder, traced for ragged batches.

| name           | type, shape          | meaning                                                        |
|----------------|----------------------|----------------------------------------------------------------|
| input_ids      | int64 [batch, seq]   | token ids, padded on the right with any id of the vocabulary   |
| lengths        | int64 [batch]        | tokens of each row that are no padding, 1 or more              |
| token_type_ids | int64 [batch, seq]   | segments, of models that have several                          |

Attention is the standard operator with `nonpad_kv_seqlen`, so that padding never changes a row; with a mask besides
where a token sees only its neighbours. A model that computes attention by itself (MPNet and DeBERTa, whose scores
depend on relative positions) is traced as it stands, behind the mask that transformers makes.

A decoder is read as an encoder for what it says of a whole text, by its last token: its attention is causal, and what
is behind a row is padding, which no token of the row sees. One with `use_bidirectional_attention` is an encoder.
"""

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import nn
from torch.onnx import ops

from piston.checkpoint.architectures import DECODER_TYPES, ENCODER_TYPES
from piston.checkpoint.quiet import quiet
from piston.core.bundle.interface import BATCH, GraphInterface, TensorSpec
from piston.core.errors import CheckpointError, MisuseError, UnsupportedModelError
from piston.export.layers import replace_linear, replace_norm
from piston.export.onnx_program import onnx_of
from piston.export.signature import OPSET

ATTENTION = "piston-encoder"
# The masks have what a window says.
IGNORED_OPTIONS = {
    "deterministic",
    "dropout",
    "is_causal",
    "output_attentions",
    "position_ids",
    "sliding_window",
    "use_cache",
}
TOKENS = TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, "seq"), role="tokens")
LENGTHS = TensorSpec(name="lengths", dtype="int64", shape=(BATCH,), role="lengths")
TOKEN_TYPES = TensorSpec(name="token_type_ids", dtype="int64", shape=(BATCH, "seq"), role="token_types")


def check_encoder(config: Any) -> None:
    """Raise UnsupportedModelError for the config of what is no encoder that Piston exports."""
    known = (*ENCODER_TYPES, *DECODER_TYPES)
    if config.model_type not in known:
        raise UnsupportedModelError(
            f"Encoders of model type {config.model_type!r} are not supported; supported: {', '.join(known)}."
        )
    if getattr(config, "is_decoder", False):
        raise UnsupportedModelError("The config says is_decoder; set it to false to export the model as an encoder.")


def inputs_of(model: nn.Module, given: Sequence[str] = ("token_type_ids",)) -> tuple[TensorSpec, ...]:
    """What the canonical graph reads; `given` are the inputs that the tokenizer of the checkpoint makes."""
    takes_types = "token_type_ids" in inspect.signature(model.forward).parameters and "token_type_ids" in given
    has_types = takes_types and (getattr(model.config, "type_vocab_size", None) or 0) > 1
    return (TOKENS, LENGTHS, TOKEN_TYPES) if has_types else (TOKENS, LENGTHS)


def positions_of(model: nn.Module, limits: Sequence[int | None], context: int | None) -> int:
    """Tokens that a text may have: the least of the model's table, the `limits` and `context`.

    Raises:
        MisuseError: `context` is more than the table has.
    """
    found = [module for name, module in model.named_modules() if name.endswith("position_embeddings")]
    tables = [module for module in found if isinstance(module, nn.Embedding)]
    # Tables with a padding index begin behind it (RoBERTa).
    sizes = [table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1) for table in tables]
    largest = min(sizes or [int(model.config.max_position_embeddings)])  # type: ignore[union-attr, arg-type]
    if context is not None and context > largest:
        raise MisuseError(f"--context {context} is more than the {largest} positions of the model.")
    return min([largest, *(limit for limit in [*limits, context] if limit)])


@dataclass(slots=True)
class LengthsHolder:
    """Where attention finds the lengths of the rows that are being traced.

    transformers keeps registered functions for good, so they hold this and never the model.
    """

    lengths: torch.Tensor | None = None

    def current(self) -> torch.Tensor:
        """The lengths; only while tracing."""
        assert self.lengths is not None
        return self.lengths


class CanonicalEncoder(nn.Module):
    """The encoder and its head, which gives the graph's output.

    Args:
        model: a module of transformers.
        head: takes what the model returns and a mask bool [batch, seq] of the tokens that are not padding.
    """

    def __init__(self, model: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.head = head
        self.holder = LengthsHolder()

    def forward(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The head's output for token ids [batch, seq] of rows of `lengths` [batch] tokens."""
        self.holder.lengths = lengths
        mask = torch.arange(input_ids.shape[1])[None] < lengths[:, None]
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        output = self.model(input_ids=input_ids, attention_mask=mask.to(torch.int64), **types)
        result: torch.Tensor = self.head(output, mask)
        return result


def trace_encoder(encoder: CanonicalEncoder, interface: GraphInterface) -> ir.Model:
    """Trace a float32 model; replaces parts of it for good, so take reference outputs before.

    Raises:
        UnsupportedModelError: the model does something the canonical graph has no form for.
    """
    # Sizes differ from one another and from 0 and 1, so that none is taken for a constant or for another.
    batch, seq = 2, 5
    example = {
        "input_ids": torch.full((batch, seq), 3),
        "lengths": torch.tensor([seq, seq - 2]),
        "token_type_ids": torch.zeros(batch, seq, dtype=torch.int64),
    }
    dim = torch.export.Dim
    sizes = {BATCH: dim(BATCH), "seq": dim("seq", min=2)}
    shapes = {
        tensor.name: {axis: sizes[size] for axis, size in enumerate(tensor.shape) if isinstance(size, str)}
        for tensor in interface.inputs
    }
    with quiet(), torch.no_grad(), _replaced(encoder):
        given = {name: example[name] for name in shapes}
        return onnx_of(encoder.eval(), interface.input_names, interface.output_names, given, shapes)


@contextmanager
def _replaced(encoder: CanonicalEncoder) -> Iterator[None]:
    """Answer attention, masks, norms and linears with ONNX operators."""
    from transformers import AttentionInterface, AttentionMaskInterface

    model, current = encoder.model, encoder.holder.current
    AttentionInterface.register(ATTENTION, _attention_of(current))
    AttentionMaskInterface.register(ATTENTION, _mask)
    if _takes_attention(model):
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    for module in encoder.modules():
        replace_norm(module)
        replace_linear(module, tied=False)
    yield
    encoder.holder.lengths = None


def _takes_attention(model: nn.Module) -> bool:
    """Whether the model asks transformers' AttentionInterface; others compute attention themselves."""
    return hasattr(sys.modules[type(model).__module__], "ALL_ATTENTION_FUNCTIONS")


def _attention_of(current: Callable[[], torch.Tensor]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention-24 over the tokens that are no padding."""

    def attention(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        found = (name for name, given in options.items() if given is not None and given is not False)
        if unknown := sorted(name for name in found if name not in IGNORED_OPTIONS):
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {unknown[0]!r} to attention; no graph form for it."
            )
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        if _sees_all(module):
            attention_mask = None
        is_causal = attention_mask is None and getattr(module, "is_causal", False)
        lengths = None if is_causal else current()  # padding is behind a row: no token before it sees it
        inputs: tuple[torch.Tensor | None, ...] = (query, key, value, attention_mask, None, None, lengths)
        while inputs[-1] is None:
            inputs = inputs[:-1]
        attributes: dict[str, Any] = {"scale": float(scale)} | ({"is_causal": 1} if is_causal else {})
        shape = (*query.shape[:3], value.shape[3])
        output = ops.symbolic("::Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=OPSET)
        return output.transpose(1, 2).contiguous(), None  # (batch, seq, heads, head_dim)

    return attention


def _sees_all(module: nn.Module) -> bool:
    """Whether it is a layer of a decoder made an encoder (EmbeddingGemma), whose mask of all tokens says nothing."""
    is_bidirectional = getattr(getattr(module, "config", None), "use_bidirectional_attention", False)
    return bool(is_bidirectional) and getattr(module, "sliding_window", None) is None


def _mask(*, mask_function: Callable[..., Any], q_length: Any, kv_length: Any, **_: Any) -> torch.Tensor | None:
    """None for masks that attention makes by itself, from lengths or causally; others as bool [queries, keys]."""
    if getattr(mask_function, "__name__", "") in {"bidirectional_mask_function", "causal_mask_function"}:
        return None
    queries, keys = torch.arange(q_length)[:, None], torch.arange(kv_length)[None, :]
    mask = mask_function(torch.tensor(0), torch.tensor(0), queries, keys)
    return torch.as_tensor(mask).expand(q_length, kv_length)


def check_finite(model: nn.Module, name: str) -> None:
    """Raise CheckpointError for a weight that is NaN or infinite, whatever text it would show on."""
    for parameter, values in model.named_parameters():
        if not torch.isfinite(values).all():
            raise CheckpointError(f"{parameter} of {name} has values that are NaN or infinite; the file is damaged.")
