"""The two canonical graphs of an encoder-decoder, from one unmodified transformers module.

The encoder's graph ends with the keys and values of the decoder's cross-attentions, `cross.{i}.key` and `.value`: they
depend on the source alone, and are computed once. The decoder's graph is that of a language model (signature.py), with
these states as inputs:

| graph   | name                   | type, shape                            | meaning                                 |
|---------|------------------------|----------------------------------------|-----------------------------------------|
| encoder | input_ids              | int64 [batch, source]                  | tokens, padded on the right with any id |
| encoder | lengths                | int64 [batch]                          | tokens of each row that are no padding  |
| encoder | audio                  | float32 [batch, mels, frames]          | instead of both, of speech models       |
| both    | cross.{i}.key / .value | float [batch, heads, source, head_dim] | output of one, state of the other       |
| decoder | source_lengths         | int64 [batch]                          | positions of a source, without padding  |

Where all sources have one length, the decoder has no `source_lengths`.

Attention is the standard operator with `nonpad_kv_seqlen`, so padding of the source never changes a result.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch import nn

from piston.checkpoint.quiet import quiet
from piston.core.bundle.interface import (
    BATCH,
    CAPACITY,
    SOURCE,
    CacheSpec,
    GraphInterface,
    cross_states,
)
from piston.core.errors import UnsupportedModelError
from piston.export.layers import is_tied, replace_linear, replace_norm
from piston.export.onnx_program import onnx_of
from piston.export.operators import keep_rows
from piston.export.positions import is_position_embedding, replace_bias, replace_positions
from piston.export.source_attention import Caches, CrossCache, Traced, Uncached, attention_of, no_mask
from piston.export.step import Step, StepCache

ATTENTION = "piston-encoder-decoder"


class CanonicalSource(nn.Module):
    """The encoder, and the keys and values of the decoder's cross-attentions."""

    def __init__(self, model: nn.Module, traced: Traced) -> None:
        super().__init__()
        self.model = model
        self.traced = traced

    def states(self, encoded: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Run the decoder on one token, whose result is not used: on the way it computes what is wanted."""
        rows = encoded.shape[0]
        zeros = torch.zeros(rows, 1, dtype=torch.int64)
        self.traced.step = Step(zeros, zeros[:, 0], zeros[:, 0] + 1, 1)
        self.traced.cross, self.traced.kept = [], None
        cross = CrossCache(self.traced)
        decoder = self.model.get_decoder()  # type: ignore[operator]
        decoder(
            input_ids=zeros, encoder_hidden_states=encoded, past_key_values=Caches(Uncached(), cross), use_cache=True
        )
        return tuple(self.traced.cross)


class TextSource(CanonicalSource):
    """A source of tokens."""

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cross states of ids [batch, source] and lengths [batch]."""
        self.traced.lengths = lengths
        return self.states(self.model.get_encoder()(input_ids=input_ids).last_hidden_state)  # type: ignore[operator]


class AudioSource(CanonicalSource):
    """A source of mel spectrograms that all have one length."""

    def forward(self, audio: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Cross states of features float32 [batch, mels, frames]."""
        self.traced.lengths = None
        return self.states(self.model.get_encoder()(audio).last_hidden_state)  # type: ignore[operator]


class FixedTarget(nn.Module):
    """The decoder, where every source has as many positions: flat tensors in and out, in the order of the signature."""

    def __init__(self, model: nn.Module, traced: Traced) -> None:
        super().__init__()
        self.model = model
        self.traced = traced

    def forward(  # noqa: PLR0913, PLR0917 - the signature of the graph
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        write_indices: torch.Tensor,
        kv_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        past: list[torch.Tensor],
        cross: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """One step."""
        traced = self.traced
        traced.step = Step(position_ids, write_indices, kv_lengths, past[0].shape[2])
        traced.kept, traced.cross, traced.aligned = logits_positions, list(cross), {}
        own = StepCache(past, traced.step)
        # The cross states are read in place of what would be computed from it.
        encoded = torch.zeros(input_ids.shape[0], cross[0].shape[2], self.model.config.d_model)  # type: ignore[union-attr, arg-type]
        logits = self.model(
            encoder_outputs=(encoded,),
            decoder_input_ids=input_ids,
            past_key_values=Caches(own, CrossCache(traced)),
            use_cache=True,
        ).logits
        missing = [index // 2 for index, present in enumerate(own.present) if present is None]
        if missing:
            raise UnsupportedModelError(f"Layer {missing[0]} never wrote its cache; it is not an attention layer.")
        if not traced.alignment_heads:
            return (logits, *own.present)
        return (logits, torch.cat([traced.aligned[place] for place in traced.alignment_heads], dim=1), *own.present)


class RaggedTarget(FixedTarget):
    """The decoder for sources of different lengths."""

    def forward(  # type: ignore[override]  # noqa: PLR0913, PLR0917 - the signature of the graph
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        write_indices: torch.Tensor,
        kv_lengths: torch.Tensor,
        logits_positions: torch.Tensor,
        source_lengths: torch.Tensor,
        past: list[torch.Tensor],
        cross: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """One step."""
        self.traced.lengths = source_lengths
        return super().forward(input_ids, position_ids, write_indices, kv_lengths, logits_positions, past, cross)


@dataclass(frozen=True, slots=True)
class EncoderDecoderGraphs:
    """The traced graphs."""

    encoder: ir.Model
    decoder: ir.Model


def states_of(
    model: nn.Module, source: dict[str, torch.Tensor], num_positions: int | None
) -> tuple[CacheSpec, CacheSpec]:
    """Ask the model what it caches of its own tokens and of the source, by running a token.

    Args:
        model: as transformers loaded it.
        source: arguments of its forward for one source.
        num_positions: of every source, where all have as many.
    """
    with torch.no_grad(), quiet():
        found = model(**source, decoder_input_ids=torch.zeros(1, 1, dtype=torch.int64), use_cache=True).past_key_values

    def sizes(layers: Sequence[Any]) -> list[list[tuple[int, int]]]:
        return [[(part.shape[1], part.shape[3]) for part in (layer.keys, layer.values)] for layer in layers]

    own = CacheSpec.of_layers(sizes(found.self_attention_cache.layers), "float32")
    cross = sizes(found.cross_attention_cache.layers)
    return own, cross_states(cross, SOURCE if num_positions is None else num_positions)


def trace_encoder_decoder(
    model: nn.Module,
    encoder: GraphInterface,
    decoder: GraphInterface,
    example: dict[str, torch.Tensor],
    positions: int,
    *,
    alignment_heads: Sequence[tuple[int, int]] = (),
) -> EncoderDecoderGraphs:
    """Trace a float32 model; replaces parts of it for good, so take reference outputs before.

    Args:
        model: of a class with `get_encoder` and `get_decoder`.
        encoder: the interface of its graph.
        decoder: likewise.
        example: inputs of the encoder's graph for a batch of two.
        positions: of the tables of positions.
        alignment_heads: (layer, head) of the decoder's cross-attentions whose weights become an output.

    Raises:
        UnsupportedModelError: the model does something that the canonical graphs have no form for.
    """
    traced = Traced()
    with quiet(), torch.no_grad(), _replaced(model, traced, positions):
        source = (AudioSource if "audio" in example else TextSource)(model, traced)
        encoder_graph = _export(source, encoder, example, _shapes_of(encoder))
        traced.lengths, traced.alignment_heads = None, alignment_heads
        is_ragged = any(tensor.role == "source_lengths" for tensor in decoder.inputs)
        target = (RaggedTarget if is_ragged else FixedTarget)(model, traced)
        decoder_graph = _export(target, decoder, *_step_example(decoder))
    return EncoderDecoderGraphs(encoder_graph, decoder_graph)


def _export(module: nn.Module, interface: GraphInterface, example: dict[str, Any], shapes: dict[str, Any]) -> ir.Model:
    return onnx_of(module.eval(), interface.input_names, interface.output_names, example, shapes)


def _shapes_of(interface: GraphInterface) -> dict[str, Any]:
    sizes: dict[str, Any] = {}
    return {tensor.name: _axes(tensor.shape, sizes) for tensor in interface.inputs}


def _axes(shape: tuple[int | str, ...], sizes: dict[str, Any]) -> dict[int, Any]:
    """The axes that vary; equal names are one size."""
    names = {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
    return {axis: sizes.setdefault(name, torch.export.Dim(name)) for axis, name in names.items()}


def _step_example(interface: GraphInterface) -> tuple[dict[str, Any], dict[str, Any]]:
    # Sizes differ from one another and from 0 and 1, so that none is taken for a constant or for another.
    sizes = {BATCH: 2, "seq": 5, CAPACITY: 11, "k": 3, SOURCE: 7}
    dims: dict[str, Any] = {}
    example: dict[str, Any] = {}
    shapes: dict[str, Any] = {}
    for tensor in interface.inputs:
        example[tensor.name] = torch.zeros([sizes[str(size)] for size in tensor.shape], dtype=torch.int64)
        shapes[tensor.name] = _axes(tensor.shape, dims)
    example["kv_lengths"] += sizes["seq"]
    if "source_lengths" in example:
        example["source_lengths"] += sizes[SOURCE]
    for name, is_cross in (("past", False), ("cross", True)):
        states = [state for state in interface.states if (state.kind == "cross_kv") == is_cross]
        filled = [[sizes[size] if isinstance(size, str) else size for size in state.shape] for state in states]
        example[name] = [torch.zeros(shape) for shape in filled]
        shapes[name] = [_axes(state.shape, dims) for state in states]
    return example, shapes


@contextmanager
def _replaced(model: Any, traced: Traced, positions: int) -> Iterator[None]:
    """Answer attention, masks, positions, norms and linears with ONNX operators and tables."""
    from transformers import AttentionInterface, AttentionMaskInterface

    in_encoder = {id(module) for module in model.get_encoder().modules()}
    AttentionInterface.register(ATTENTION, attention_of(traced, in_encoder))
    AttentionMaskInterface.register(ATTENTION, no_mask)
    model.set_attn_implementation(ATTENTION)
    head = model.get_output_embeddings()
    for name, module in model.named_modules():
        where = None if id(module) in in_encoder else traced.positions
        if is_position_embedding(name, module):
            replace_positions(module, positions, where)
        if getattr(module, "has_relative_attention_bias", False):
            replace_bias(module, where)
        replace_norm(module)
        replace_linear(module, tied=module is head and is_tied(model))
    _keep_rows_before(head, traced)
    with ExitStack() as stack:
        source = sys.modules[type(model).__module__]
        if hasattr(source, "slice_logits_to_keep"):  # of all: the head is given the rows that are wanted
            stack.enter_context(mock.patch.object(source, "slice_logits_to_keep", lambda hidden, _: hidden))
        try:
            yield
        finally:
            traced.step = traced.lengths = traced.kept = None
            traced.alignment_heads, traced.aligned = (), {}
            traced.cross = []


def _keep_rows_before(head: nn.Module, traced: Traced) -> None:
    """Let the head compute the logits of the positions that are wanted alone."""
    whole = head.forward

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        return whole(hidden if traced.kept is None else keep_rows(hidden, traced.kept))  # type: ignore[no-any-return]

    head.forward = forward
