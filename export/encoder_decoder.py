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

Attention is the standard operator with `nonpad_kv_seqlen`, so padding of the source never changes a result. What
tells one attention from another is not its name: an attention over keys of the cross states is a cross-attention, one
of a module of the encoder reads the source, every other one the decoder's own tokens.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import onnx_ir as ir
import torch
from torch import nn
from torch.onnx import ops
from transformers.cache_utils import EncoderDecoderCache

from piston.checkpoint.quiet import quiet
from piston.core.bundle.interface import (
    BATCH,
    CAPACITY,
    PARTS,
    SOURCE,
    CacheSpec,
    GraphInterface,
    cross_states,
)
from piston.core.errors import UnsupportedModelError
from piston.export.layers import is_tied, replace_linear, replace_norm
from piston.export.operators import IGNORED_OPTIONS, keep_rows
from piston.export.positions import is_position_embedding, replace_bias, replace_positions
from piston.export.signature import OPSET
from piston.export.step import Step, StepCache

ATTENTION = "piston-encoder-decoder"
MASKS = ("causal_mask_function", "bidirectional_mask_function")


@dataclass(slots=True)
class Traced:
    """What the replaced functions need of the call being traced.

    transformers keeps registered functions for good, so they hold this and never the model: gigabytes would stay.
    """

    step: Step | None = None  # of the decoder
    lengths: torch.Tensor | None = None  # of the sources; None where all have one length
    kept: torch.Tensor | None = None  # positions whose logits are computed; None: the result is not used
    cross: list[torch.Tensor] = field(default_factory=list)  # keys and values over the source, in the order of states
    alignment_heads: Sequence[tuple[int, int]] = ()  # (layer, head) of cross-attentions whose weights are an output
    aligned: dict[tuple[int, int], torch.Tensor] = field(default_factory=dict)  # these weights, [batch, 1, seq, source]

    def align(self, layer: int, query: torch.Tensor, key: torch.Tensor, scale: float) -> None:
        """Keep the weights of the heads of a layer that say where in the source a token looks."""
        for head in [head for at, head in self.alignment_heads if at == layer]:
            scores = query[:, head : head + 1] @ key[:, head : head + 1].transpose(2, 3)
            self.aligned[layer, head] = torch.softmax(scores * scale, dim=-1)

    def positions(self) -> torch.Tensor:
        """Positions of the decoder's tokens, int64 [batch, seq]."""
        assert self.step is not None
        return self.step.position_ids


class _Layer:
    """Keys and values of one cross-attention."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values


class CrossCache:
    """Answers transformers' Cache protocol for cross-attentions: gives the states out, or records them."""

    is_compileable = False

    def __init__(self, traced: Traced) -> None:
        self.traced = traced
        parts = traced.cross
        self.layers = [_Layer(*pair) for pair in zip(parts[::2], parts[1::2], strict=True)]

    def update(self, key: torch.Tensor, value: torch.Tensor, layer_idx: int, *_: object, **__: object) -> Any:
        """Record the states of a layer; layers come in their order."""
        if len(self.traced.cross) != len(PARTS) * layer_idx:
            raise UnsupportedModelError(f"Layer {layer_idx} does not attend to the source once.")
        self.traced.cross += [key, value]
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """No position is derived from it."""
        del layer_idx
        return 0


class _Uncached:
    """A self-attention cache of tokens that nothing came before."""

    is_compileable = False
    is_sliding = (False,)

    def update(self, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object) -> Any:
        """Keys and values of this call alone."""
        return key, value

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """None is cached."""
        del layer_idx
        return 0

    get_query_offset = get_seq_length

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(keys, offset of the first)."""
        del layer_idx
        return query_length, 0


class Caches(EncoderDecoderCache):  # type: ignore[misc]  # transformers is untyped here
    """Both caches, as attentions of encoder-decoders ask for them; some models ask it for masks, too."""

    is_sliding = is_linear = is_dummy = (False,)
    is_compileable = False

    def __init__(self, own: Any, cross: CrossCache) -> None:  # the base class takes only its own kinds
        self.self_attention_cache, self.cross_attention_cache = own, cross
        self.is_updated = dict.fromkeys(range(len(cross.layers)), True)

    def __len__(self) -> int:
        return max(len(self.is_updated), 1)

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """See the cache of the decoder's own tokens."""
        return int(self.self_attention_cache.get_query_offset(layer_idx))

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """See the cache of the decoder's own tokens."""
        found: tuple[int, int] = self.self_attention_cache.get_mask_sizes(query_length, layer_idx)
        return found


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
            input_ids=zeros, encoder_hidden_states=encoded, past_key_values=Caches(_Uncached(), cross), use_cache=True
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
    program = torch.onnx.export(
        module.eval(),
        (),
        kwargs=example,
        input_names=interface.input_names,
        output_names=interface.output_names,
        opset_version=OPSET,
        dynamo=True,
        external_data=True,
        dynamic_shapes=shapes,
        optimize=False,  # see piston.export.trace
        verbose=False,
    )
    assert program is not None
    return program.model


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
    AttentionInterface.register(ATTENTION, _attention_of(traced, in_encoder))
    AttentionMaskInterface.register(ATTENTION, _no_mask)
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


def _attention_of(traced: Traced, in_encoder: set[int]) -> Callable[..., tuple[torch.Tensor, None]]:
    """Attention-24 of the three kinds; raises UnsupportedModelError for options it has no form for."""

    def attention(  # noqa: PLR0913, PLR0917 - the interface is transformers'
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        scaling: float | None = None,
        position_bias: torch.Tensor | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        found = (name for name, given in options.items() if given is not None and given is not False)
        if unknown := sorted(name for name in found if name not in IGNORED_OPTIONS):
            raise UnsupportedModelError(
                f"{type(module).__name__} passes {unknown[0]!r} to attention; no graph form for it."
            )
        assert attention_mask is None
        attributes: dict[str, Any] = {"scale": float(query.shape[-1] ** -0.5 if scaling is None else scaling)}
        lengths, bias = traced.lengths, position_bias
        if any(key is part for part in traced.cross):
            if getattr(module, "has_relative_attention_bias", False):
                raise UnsupportedModelError(f"{type(module).__name__} has a bias by distance to the source.")
            bias = None  # zeros
            if traced.alignment_heads:
                traced.align(module.layer_idx, query, key, attributes["scale"])  # type: ignore[arg-type]
        elif id(module) not in in_encoder:
            assert traced.step is not None
            attributes["is_causal"] = 1
            lengths = traced.step.kv_lengths
        inputs = [query, key, value, bias, None, None, lengths]
        while inputs[-1] is None:
            inputs.pop()
        shape = (*query.shape[:3], value.shape[3])
        output = ops.symbolic("::Attention", inputs, attributes, dtype=query.dtype, shape=shape, version=OPSET)
        return output.transpose(1, 2).contiguous(), None  # (batch, seq, heads, head_dim)

    return attention


def _no_mask(*, mask_function: Callable[..., Any], **_: Any) -> None:
    """None: attention knows the lengths. Refuses a mask that is neither causal nor none at all."""
    name = getattr(mask_function, "__name__", "")
    if name not in MASKS:
        raise UnsupportedModelError(f"The attention mask {name!r} is neither causal nor over the whole source.")
