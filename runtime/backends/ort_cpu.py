"""The engine over ONNX Runtime: one session, every input and output bound to memory that never moves.

It runs any decoder graph, lowered or not; inputs that a lowering made superfluous are not bound.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from piston.core.bundle.interface import SOURCE_LENGTHS, CacheSpec, is_cross, is_past
from piston.core.errors import EngineError, MisuseError
from piston.runtime.backends.buffers import Buffers
from piston.runtime.backends.cross_states import CrossStates
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_run import Run, RunHook
from piston.runtime.backends.session import OrtOptions, agree, open_session, translated

CACHE_ITEMS = {"float32": np.float32, "float16": np.float16, "int8": np.int8}
CACHE_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "int8": "tensor(int8)"}
# Tokens of one prefill step. GroupQueryAttention computes scores that the causal mask drops, so short steps save
# more there than they cost in matrix products: 512 tokens of an INT8 model take 215 ms in steps of 128, 262 in one.
PREFILL_CHUNK = 128
KERNELS_CHUNK = 512  # for Piston's own kernels, which skip masked scores
MAX_BINDINGS = 64  # bindings kept for decode steps, one per range of rows; making one takes less time than a step


class OrtEngine:
    """An engine on ONNX Runtime: prefill runs on one slot's part of the cache, a decode step on all its rows at once.

    A step's binding is reused. This needs a cache in host memory: inputs on a device are copied when they are bound.

    Attributes:
        around_run: called in place of every run of the session, to give it more inputs and fetch more outputs; see
            piston.runtime.backends.ort_run.
    """

    around_run: RunHook | None = None

    def __init__(self, session: Any, cache: KVCache, chunk: int = PREFILL_CHUNK, run_options: Any = None) -> None:
        num_slots, capacity = cache.num_slots, cache.capacity
        self.vocab_size = int(session.get_outputs()[0].shape[-1])
        self.cache = cache
        self._cross = cache.cross if isinstance(cache.cross, CrossStates) else None
        self._session = session
        self._run_options = run_options
        self._chunk = min(chunk, capacity)
        self._inputs = {item.name for item in session.get_inputs()}
        self._decode = Buffers(num_slots, num_slots, num_slots, self.vocab_size)
        self._prefill = Buffers(1, self._chunk, 1, self.vocab_size)
        self._decode_bindings: dict[tuple[int, int, int], Any] = {}

    @classmethod
    def open(
        cls,
        path: Path,
        spec: CacheSpec,
        *,
        num_slots: int,
        capacity: int,
        options: OrtOptions | None = None,
        cross: CrossStates | None = None,
    ) -> Self:
        """Load an ONNX file; `cross` holds the states that the decoder of an encoder-decoder reads.

        Raises:
            MissingExtraError: ONNX Runtime is not installed.
            EngineError: it refuses the file, or the file is not a decoder with this cache.
        """
        options = options or OrtOptions()
        session = open_session(path, options)
        check_interface(session, spec, path, None if cross is None else cross.spec)
        cache = KVCache(spec, num_slots, capacity)
        cache.cross = cross
        return cls(session, cache, KERNELS_CHUNK if options.kernels else PREFILL_CHUNK)

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine. Work is cut into chunks; only the last `num_logits` positions reach the vocabulary."""
        ids = self._checked(token_ids)
        if not 0 <= num_logits <= len(ids):
            raise MisuseError(f"Logits of {num_logits} positions were requested from a prefill of {len(ids)} tokens.")
        self.cache.reserve(slot, len(ids))
        if num_logits > len(self._prefill.logits):
            self._prefill = Buffers(1, self._chunk, num_logits, self.vocab_size)
        done, first_kept = 0, len(ids) - num_logits
        for start in range(0, len(ids), self._chunk):
            chunk = ids[start : start + self._chunk]
            kept = range(min(max(first_kept - start, 0), len(chunk)), len(chunk))
            self._prefill_chunk(slot, chunk, kept, done)
            done += len(kept)
        return self._prefill.logits[:num_logits]

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """See Engine."""
        self.check_step(tokens)
        buffers = self._decode
        for low, high in self.cache.spans(tokens):
            rows, lengths = slice(low, high), self.cache.lengths[low:high]
            buffers.input_ids[rows] = [tokens.get(slot, 0) for slot in range(low, high)]
            buffers.position_ids[rows] = lengths
            buffers.write_indices[rows] = lengths
            buffers.kv_lengths[rows] = lengths + 1
            buffers.total_sequence_length[0] = lengths.max() + 1
            # Least recently used first: it is dropped when there are too many.
            key = (low, high, 0 if self._cross is None else self._cross.width)
            binding = self._decode_bindings.pop(key, None)
            self._decode_bindings[key] = binding or self._bind(buffers, low, high, seq=1, logits=buffers.logits[rows])
            if len(self._decode_bindings) > MAX_BINDINGS:
                del self._decode_bindings[next(iter(self._decode_bindings))]
            self._run(self._decode_bindings[key])
        for slot in tokens:
            self.cache.advance(slot, 1)
        return {slot: buffers.logits[slot] for slot in tokens}

    def check_step(self, tokens: Mapping[int, int]) -> None:
        """Raise the errors of `step` before anything is changed."""
        self._checked(list(tokens.values()))
        for slot in tokens:
            self.cache.reserve(slot, 1)

    def close(self) -> None:
        """Drop the session and its bindings."""
        self._decode_bindings.clear()
        self._session = None

    def _checked(self, token_ids: Sequence[int]) -> np.ndarray:
        if self._session is None:
            raise MisuseError("The engine is closed; load the bundle again.")
        ids = np.asarray(token_ids, np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise MisuseError(
                f"Token ids run from {ids.min()} to {ids.max()}; the model knows 0 to {self.vocab_size - 1}."
            )
        return ids

    def _prefill_chunk(self, slot: int, chunk: np.ndarray, kept: range, done: int) -> None:
        buffers, length = self._prefill, int(self.cache.lengths[slot])
        buffers.input_ids[: len(chunk)] = chunk
        buffers.position_ids[: len(chunk)] = np.arange(length, length + len(chunk))
        buffers.write_indices[0] = length
        buffers.kv_lengths[0] = buffers.total_sequence_length[0] = length + len(chunk)
        buffers.logits_positions[: len(kept)] = kept
        logits = buffers.logits[done : done + len(kept)]
        row = self.cache.row(slot)
        self._run(self._bind(buffers, row, row + 1, seq=len(chunk), logits=logits))
        self.cache.advance(slot, len(chunk))

    def _bind(self, buffers: Buffers, low: int, high: int, seq: int, logits: np.ndarray) -> Any:
        """Bind one step on rows low .. high of the cache; past and present are the same memory."""
        binding, rows = self._session.io_binding(), high - low
        kept = len(logits) // rows
        offset = low if buffers is self._decode else 0
        for name, (array, shape) in buffers.inputs(rows, seq, kept, offset).items():
            if name in self._inputs:
                binding.bind_input(name, "cpu", 0, array.dtype, shape, array.ctypes.data)
        shape = [rows, kept, self.vocab_size]
        binding.bind_output("logits", "cpu", 0, np.float32, shape, logits.ctypes.data)
        bind_cache(binding, self.cache, low, rows)
        if self._cross is not None:
            bind_cross(binding, self._cross, low, rows, self._inputs)
        return binding

    def _run(self, binding: Any) -> None:
        if self.around_run is None:
            self._execute(binding)
        else:
            self.around_run(Run(binding, self._execute, self.cache))

    def _execute(self, binding: Any) -> None:
        with translated("running a step"):
            self._session.run_with_iobinding(binding, self._run_options)


def bind_cache(binding: Any, cache: KVCache, low: int, rows: int) -> None:
    """Bind rows low .. low + rows of the cache as past and as present: one memory, written in place."""
    for index, state in enumerate(cache.spec.states):
        shape, item = list(state.sizes(rows, cache.capacity)), CACHE_ITEMS[state.dtype]
        address = cache.address(index, low)
        binding.bind_input(state.input, cache.device, 0, item, shape, address)
        binding.bind_output(state.output, cache.device, 0, item, shape, address)


def bind_cross(binding: Any, cross: CrossStates, low: int, rows: int, inputs: Collection[str]) -> None:
    """Bind rows low .. low + rows of the cross states, and of the lengths if the graph reads them."""
    for state, array in zip(cross.spec.states, cross.arrays, strict=True):
        part = array[low : low + rows]
        binding.bind_input(state.input, "cpu", 0, array.dtype, list(part.shape), part.ctypes.data)
    if SOURCE_LENGTHS.name in inputs:
        binding.bind_input(SOURCE_LENGTHS.name, "cpu", 0, np.int64, [rows], cross.lengths[low:].ctypes.data)


def check_interface(session: Any, spec: CacheSpec, path: Path, cross: CacheSpec | None = None) -> None:
    """Refuse a graph that is not a decoder or has another cache, before a step runs on memory of the wrong size."""
    shapes = {item.name: list(item.shape) for item in [*session.get_inputs(), *session.get_outputs()]}
    if not isinstance(shapes.get("logits", [None])[-1], int):
        raise EngineError(
            f"{path} has no output named logits with a known vocabulary size; it is not a decoder that Piston exported."
        )
    states = (*spec.states, *(() if cross is None else cross.states))
    found, wanted = {name for name in shapes if is_past(name) or is_cross(name)}, {state.input for state in states}
    if found != wanted:
        raise EngineError(
            f"{path} has {len(found)} states, not the {len(wanted)} that its manifest states (it differs in "
            f"{min(found ^ wanted)}); build it again."
        )
    types = {item.name: item.type for item in session.get_inputs()}
    for state in states:
        if not agree(shapes[state.input], list(state.shape)):
            raise EngineError(
                f"{state.input} of {path} is {shapes[state.input]}, not {list(state.shape)} as its manifest states; "
                "build it again."
            )
        if types[state.input] != CACHE_TYPES.get(state.dtype):
            raise EngineError(f"{state.input} of {path} is not {state.dtype}, as its manifest states; build it again.")
