"""The interface of a deserialized engine, read from the engine itself and checked against docs/tensorrt.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from piston.core.bundle.interface import ALIGNMENT, ITEM_SIZES, SOURCE_LENGTHS, CacheSpec
from piston.core.errors import EngineError, MisuseError
from piston.runtime.backends.device_block import MOVING

PREFILL, DECODE = 0, 1  # profiles
CAPACITY_AXIS = 2  # of keys and values
CHUNK = 512  # tokens of a prefill step that plans are built for
INPUTS: Mapping[str, str] = {
    **dict.fromkeys((*MOVING, "logits_positions", "top_k"), "INT64"),
    **dict.fromkeys(("temperature", "top_p", "uniforms"), "FLOAT"),
}
OUTPUTS: Mapping[str, str] = {"logits": "FLOAT", **{f"next.{name}": "INT64" for name in MOVING}}
TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16", "int64": "INT64", "int32": "INT32"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """The sizes that were fixed when the engine was built."""

    vocab_size: int
    capacity: int  # of a row in memory, at least the positions a row may hold
    max_batch: int
    chunk: int  # tokens of one prefill step
    max_logits: int  # of one prefill step
    max_source: int = 0  # positions of a row's source in memory; 0: there is no encoder
    has_lengths: bool = False  # whether sources have different lengths
    alignment: int = 0  # bytes for each token that say where in the source it looks; 0: the graph does not tell

    @classmethod
    def read(cls, engine: Any, spec: CacheSpec, source: str, cross: CacheSpec | None = None) -> Self:
        """Check names, types, profiles and aliasing; `cross` are the states over a source that the engine reads.

        Raises:
            EngineError: Piston did not build it, or its cache is not the one that `spec` states.
        """
        found, read = tensors_of(engine), () if cross is None else cross.states
        has_lengths = any(state.axis is not None for state in read)
        given = (
            found if ALIGNMENT not in found or not read else {name: found[name] for name in found if name != ALIGNMENT}
        )
        wanted = _tensors(spec) | {state.input: TYPES.get(state.dtype, state.dtype) for state in read}
        wanted |= {SOURCE_LENGTHS.name: "INT64"} if has_lengths else {}
        if given != wanted:
            odd = min(set(given.items()) ^ set(wanted.items()))
            raise EngineError(f"{source} is not the engine its manifest states: it differs in {odd}; build it again.")
        if engine.num_optimization_profiles != 2:  # noqa: PLR2004
            raise EngineError(f"{source} has {engine.num_optimization_profiles} profiles, not 2; build it again.")
        _check_caches(engine, spec, source)
        prefill, decode = (largest_shape(engine, "input_ids", profile) for profile in (PREFILL, DECODE))
        return cls(
            vocab_size=int(tuple(engine.get_tensor_shape("logits"))[-1]),
            capacity=int(tuple(engine.get_tensor_shape(spec.states[0].input))[CAPACITY_AXIS]),
            max_batch=decode[0],
            chunk=prefill[1],
            max_logits=largest_shape(engine, "logits_positions", PREFILL)[1],
            max_source=int(tuple(engine.get_tensor_shape(read[0].input))[CAPACITY_AXIS]) if read else 0,
            has_lengths=has_lengths,
            alignment=_alignment_bytes(engine) if ALIGNMENT in found else 0,
        )

    @property
    def inputs(self) -> list[str]:
        """Those that are no states."""
        return [*INPUTS, *([SOURCE_LENGTHS.name] if self.has_lengths else [])]

    def check_sizes(self, num_slots: int, capacity: int) -> None:
        """Raise MisuseError for more slots or positions than the engine has."""
        if num_slots > self.max_batch or capacity > self.capacity:
            raise MisuseError(
                f"max_batch is {num_slots} and max_length {capacity:,}, but the engine was built for {self.max_batch} "
                f"and {self.capacity:,}; build it again."
            )


def tensors_of(engine: Any) -> dict[str, str]:
    """The type of every input and output of an engine, as TensorRT names it."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {name: engine.get_tensor_dtype(name).name for name in names}


def _alignment_bytes(engine: Any) -> int:
    """Of one token: the weights of each head over the source."""
    _, heads, _, positions = (int(size) for size in engine.get_tensor_shape(ALIGNMENT))
    return heads * positions * ITEM_SIZES["float32"]  # the largest type


def _tensors(spec: CacheSpec) -> dict[str, str]:
    types = [(state, TYPES.get(state.dtype, state.dtype)) for state in spec.states]
    return {**INPUTS, **OUTPUTS, **{name: item for state, item in types for name in (state.input, state.output)}}


def _check_caches(engine: Any, spec: CacheSpec, source: str) -> None:
    for state in spec.states:
        aliased = engine.get_aliased_input_tensor(state.output)
        if aliased != state.input:
            raise EngineError(
                f"{source} writes {state.output} in place of {aliased or 'nothing'}, not of {state.input}; "
                "build it again."
            )
        shape = tuple(engine.get_tensor_shape(state.input))
        if (
            len(shape) <= CAPACITY_AXIS
            or shape[CAPACITY_AXIS] < 1
            or shape[1:] != state.sizes(0, shape[CAPACITY_AXIS])[1:]
        ):
            raise EngineError(
                f"{state.input} of {source} is {list(shape)}, not {list(state.shape)} as its manifest states; "
                "build it again."
            )


def largest_shape(engine: Any, name: str, profile: int) -> tuple[int, ...]:
    """The largest shape of an input in a profile."""
    return tuple(int(size) for size in engine.get_tensor_profile_shape(name, profile)[2])
