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
    "hidden",
    "pooled",
    "value",  # of a graph that is not a language model
]
StateKind = Literal["kv", "cross_kv", "conv", "recurrent"]

PAST, PRESENT, PARTS = "past.", "present.", ("key", "value")
BATCH, CAPACITY = "batch", "capacity"  # the symbols in the shapes of states
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

    `shape` begins with the batch; the size at `axis` grows with the sequence and is named `capacity`. A state of
    constant size has no axis.
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
        grows = self.axis is not None and self.axis < len(self.shape) and self.shape[self.axis] == CAPACITY
        if symbols[1:] != [CAPACITY] * grows or (self.axis is not None and not grows):
            return "its axis is not the one that grows"
        if self.kind in {"kv", "cross_kv"} and (len(self.shape), self.axis) != (4, 2):
            return "it is not [batch, kv_heads, capacity, head_dim]"
        return "a size is 0" if 0 in self.shape else None

    def sizes(self, rows: int, capacity: int) -> tuple[int, ...]:
        """The shape of `rows` rows of `capacity` positions."""
        known = {BATCH: rows, CAPACITY: capacity}
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
        return [tensor.name for tensor in self.outputs] + [state.output for state in self.states]

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

    @property
    def dtype(self) -> StateType:
        """The type of the first state: all keys and values of an engine have one."""
        return self.states[0].dtype

    @property
    def num_layers(self) -> int:
        """Layers that have a state."""
        return len({state.layer for state in self.states})

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


def state_name(side: str, layer: int, part: str) -> str:
    """The name of a state, such as `past.0.key`; `side` is PAST or PRESENT."""
    return f"{side}{layer}.{part}"


def is_past(name: str | None) -> bool:
    """Whether an input of a graph is a state."""
    return (name or "").startswith(PAST)


def is_present(name: str | None) -> bool:
    """Whether an output of a graph is a state."""
    return (name or "").startswith(PRESENT)


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


def decoder_interface(cache: CacheSpec, vocab_size: int) -> GraphInterface:
    """The interface of the canonical decoder graph (export/signature.py describes it)."""
    logits = TensorSpec(name="logits", dtype="float32", shape=(BATCH, "k", vocab_size), role="logits")
    return GraphInterface(inputs=STEP_INPUTS, outputs=(logits,), states=cache.states)
