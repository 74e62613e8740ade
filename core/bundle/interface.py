"""The interface of a graph: its inputs, its outputs, and the states of its layers.

Names of states, such as `past.0.key`, are spelled only in this file.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

FloatType = Literal["float32", "float16", "bfloat16"]
StateType = Literal["float32", "float16", "bfloat16", "int8"]
TensorType = Literal["float32", "float16", "bfloat16", "int8", "uint8", "int32", "int64", "bool"]
ITEM_SIZES: Mapping[str, int] = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

Role = Literal[
    "tokens",
    "token_types",
    "positions",
    "write_indices",  # where each row's new entries begin in states that grow
    "lengths",  # of each row; entries of a state that a step may see, or tokens that are not padding
    "logits_positions",
    "source_lengths",
    "audio",
    "embeddings",
    "logits",
    "alignment",  # where in the source each token looks
    "hidden",
    "pooled",
    "cross_state",  # of an encoder: keys or values of a decoder's layer over the source
    "value",  # of a graph that is not a language model
]
StateKind = Literal["kv", "cross_kv", "conv", "recurrent"]

PAST, PRESENT, CROSS, PARTS = "past.", "present.", "cross.", ("key", "value")
ALIGNMENT = "alignment"  # the output of a decoder that says where in the source each token looks
BATCH, CAPACITY, SOURCE = "batch", "capacity", "source"  # the symbols in the shapes of states
DECODER, ENCODER, MODULE = "decoder", "encoder", "module"  # names of graphs


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """An input or an output; `shape` has numbers, and names for sizes that vary."""

    name: str
    dtype: TensorType
    shape: tuple[int | str, ...]
    role: Role


@dataclass(frozen=True, slots=True, kw_only=True)
class StateSpec:
    """Memory that a step reads as `input` and writes as `output`.

    `shape` begins with the batch; the size at `axis` grows with the sequence and is named `capacity`, or `source` where
    it grows with what the encoder reads. A state of constant size has no axis. Steps only read states of the kind
    cross_kv: `output` names the output of the encoder's graph that is written there once.
    """

    input: str
    output: str
    dtype: StateType
    shape: tuple[int | str, ...]
    axis: int | None
    kind: StateKind
    layer: int

    @property
    def problem(self) -> str | None:
        """What contradicts the description above; None where nothing does."""
        symbols = [size for size in self.shape if isinstance(size, str)]
        if not self.shape or self.shape[0] != BATCH or symbols.count(BATCH) != 1:
            return "its shape does not begin with the batch"
        symbol = SOURCE if self.kind == "cross_kv" else CAPACITY
        grows = self.axis is not None and self.axis < len(self.shape) and self.shape[self.axis] == symbol
        if symbols[1:] != [symbol] * grows or (self.axis is not None and not grows):
            return "its axis is not the one that grows"
        axes = {"kv": (2,), "cross_kv": (2, None)}.get(self.kind)
        if axes is not None and (len(self.shape) != 4 or self.axis not in axes):  # noqa: PLR2004
            return f"it is not [batch, kv_heads, {symbol}, head_dim]"
        return "a size is 0" if 0 in self.shape else None

    def sizes(self, rows: int, capacity: int) -> tuple[int, ...]:
        """The shape of `rows` rows of `capacity` positions."""
        known = {BATCH: rows, CAPACITY: capacity, SOURCE: capacity}
        return tuple(known[size] if isinstance(size, str) else size for size in self.shape)

    def nbytes(self, rows: int, capacity: int) -> int:
        """Bytes of `rows` rows of `capacity` positions."""
        return math.prod(self.sizes(rows, capacity)) * ITEM_SIZES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInterface:
    """One graph as the manifest records it."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()

    @property
    def input_names(self) -> list[str]:
        """Every input of the graph, states last, in its order."""
        return [tensor.name for tensor in self.inputs] + [state.input for state in self.states]

    @property
    def output_names(self) -> list[str]:
        """Every output of the graph, states last, in its order."""
        written = [state.output for state in self.states if state.kind != "cross_kv"]
        return [tensor.name for tensor in self.outputs] + written

    def sizes_of(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
        """The sizes of the symbols in the shapes of inputs.

        Raises:
            ValueError: an input has another rank or size, or two axes of one symbol have two sizes.
        """
        sizes: dict[str, int] = {}
        for tensor in self.inputs:
            shape = shapes[tensor.name]
            known = [
                sizes.setdefault(size, shape[axis]) if isinstance(size, str) and axis < len(shape) else size
                for axis, size in enumerate(tensor.shape)
            ]
            if list(shape) != known:
                needed = ", ".join(
                    f"{size}" if isinstance(size, int) or axis >= len(shape) else f"{size} = {sizes[size]}"
                    for axis, size in enumerate(tensor.shape)
                )
                raise ValueError(f"{tensor.name} is {list(shape)}; it must be [{needed}]")
        return sizes

    def output(self, role: Role) -> TensorSpec:
        """The output of a role; raises KeyError where there is none."""
        return {tensor.role: tensor for tensor in self.outputs}[role]


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """The states of a decoder: keys and values of each layer, each [batch, kv_heads, capacity, head_dim]."""

    states: tuple[StateSpec, ...]

    @classmethod
    def of(cls, *, num_layers: int, num_kv_heads: int, head_dim: int, dtype: StateType) -> Self:
        """Layers that are all alike."""
        return cls.of_layers([((num_kv_heads, head_dim),) * len(PARTS)] * num_layers, dtype)

    @classmethod
    def of_layers(cls, layers: Sequence[Sequence[tuple[int, int]]], dtype: StateType) -> Self:
        """For each layer (kv_heads, head_dim) of its keys and of its values."""
        return cls(
            tuple(
                StateSpec(
                    input=state_name(PAST, layer, part),
                    output=state_name(PRESENT, layer, part),
                    dtype=dtype,
                    shape=(BATCH, heads, CAPACITY, head_dim),
                    axis=2,
                    kind="kv",
                    layer=layer,
                )
                for layer, sizes in enumerate(layers)
                for part, (heads, head_dim) in zip(PARTS, sizes, strict=True)
            )
        )

    @classmethod
    def of_kind(cls, states: Sequence[StateSpec], *, cross: bool) -> Self:
        """Those of a decoder's states that the encoder writes, or all others."""
        return cls(tuple(state for state in states if (state.kind == "cross_kv") == cross))

    @property
    def dtype(self) -> StateType:
        """The type of the first state: all keys and values of an engine have one."""
        return self.states[0].dtype

    @property
    def num_layers(self) -> int:
        """Layers that have a state."""
        return len({state.layer for state in self.states})

    @property
    def num_positions(self) -> int | None:
        """Positions of states over a source, where every source has as many; else None."""
        found = {state.shape[2] for state in self.states}
        (size,) = found if len(found) == 1 else (None,)
        return size if isinstance(size, int) else None

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one row takes over all layers."""
        return sum(state.nbytes(1, 1) for state in self.states if state.axis is not None)

    def with_dtype(self, dtype: StateType) -> Self:
        """The same states in another type."""
        return type(self)(tuple(replace(state, dtype=dtype) for state in self.states))

    def array_bytes(self, rows: int, capacity: int) -> list[int]:
        """Bytes of each state for `rows` rows of `capacity` positions."""
        return [state.nbytes(rows, capacity) for state in self.states]


def cross_states(layers: Sequence[Sequence[tuple[int, int]]], source: int | str = SOURCE) -> CacheSpec:
    """What an encoder writes in float32, for each layer of the decoder (heads, head_dim) of its keys and values.

    `source` is the number of positions, where every source has as many.
    """
    return CacheSpec(
        tuple(
            StateSpec(
                input=state_name(CROSS, layer, part),
                output=state_name(CROSS, layer, part),
                dtype="float32",
                shape=(BATCH, heads, source, head_dim),
                axis=2 if source == SOURCE else None,
                kind="cross_kv",
                layer=layer,
            )
            for layer, sizes in enumerate(layers)
            for part, (heads, head_dim) in zip(PARTS, sizes, strict=True)
        )
    )


def state_name(side: str, layer: int, part: str) -> str:
    """The name of a state, such as `past.0.key`; `side` is PAST, PRESENT or CROSS."""
    return f"{side}{layer}.{part}"


def is_past(name: str | None) -> bool:
    """Whether an input of a graph is a state."""
    return (name or "").startswith(PAST)


def is_cross(name: str | None) -> bool:
    """Whether an input of a decoder, or an output of an encoder, is a state over the source."""
    return (name or "").startswith(CROSS)


def is_present(name: str | None) -> bool:
    """Whether an output of a graph is a state."""
    return (name or "").startswith(PRESENT)


def is_state(name: str | None) -> bool:
    """Whether an input or output of a graph is a state of any kind."""
    return is_past(name) or is_present(name) or is_cross(name)


def past_of(present: str) -> str:
    """The input whose memory an output `present.N.part` is written to."""
    return PAST + present.removeprefix(PRESENT)


def layer_of(name: str) -> int:
    """The layer in a state's name."""
    return int(name.split(".")[1])


STEP_INPUTS = (
    TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, "seq"), role="tokens"),
    TensorSpec(name="position_ids", dtype="int64", shape=(BATCH, "seq"), role="positions"),
    TensorSpec(name="write_indices", dtype="int64", shape=(BATCH,), role="write_indices"),
    TensorSpec(name="kv_lengths", dtype="int64", shape=(BATCH,), role="lengths"),
    TensorSpec(name="logits_positions", dtype="int64", shape=(BATCH, "k"), role="logits_positions"),
)


SOURCE_LENGTHS = TensorSpec(name="source_lengths", dtype="int64", shape=(BATCH,), role="source_lengths")
# What the encoder of an encoder-decoder reads where its source is a text.
SOURCE_INPUTS = (
    TensorSpec(name="input_ids", dtype="int64", shape=(BATCH, SOURCE), role="tokens"),
    TensorSpec(name="lengths", dtype="int64", shape=(BATCH,), role="lengths"),
)


def decoder_interface(
    cache: CacheSpec, vocab_size: int, cross: CacheSpec | None = None, alignment_heads: int = 0
) -> GraphInterface:
    """The interface of the canonical decoder graph (export/signature.py describes it).

    Args:
        cache: of its own tokens.
        vocab_size: of its logits.
        cross: the states over the source, if it has an encoder.
        alignment_heads: how many of its cross-attentions' heads have their weights as an output.
    """
    logits = TensorSpec(name="logits", dtype="float32", shape=(BATCH, "k", vocab_size), role="logits")
    states = () if cross is None else cross.states
    lengths = (SOURCE_LENGTHS,) if any(state.axis is not None for state in states) else ()
    outputs = [logits]
    if alignment_heads:
        shape = (BATCH, alignment_heads, "seq", states[0].shape[2])
        outputs.append(TensorSpec(name=ALIGNMENT, dtype=cache.dtype, shape=shape, role="alignment"))
    return GraphInterface(inputs=(*STEP_INPUTS, *lengths), outputs=tuple(outputs), states=(*cache.states, *states))


def source_encoder_interface(cross: CacheSpec, inputs: tuple[TensorSpec, ...] = SOURCE_INPUTS) -> GraphInterface:
    """The interface of an encoder that writes the cross states of a decoder."""
    outputs = tuple(
        TensorSpec(name=state.output, dtype=state.dtype, shape=state.shape, role="cross_state")
        for state in cross.states
    )
    return GraphInterface(inputs=inputs, outputs=outputs)
