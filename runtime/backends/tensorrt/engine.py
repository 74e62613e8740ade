"""The engine over TensorRT or TensorRT-RTX: contexts of one plan, one cache, and buffers that never move."""

import contextlib
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import EngineError, MisuseError
from piston.runtime.backends.cuda_driver import Cuda
from piston.runtime.backends.device_decoding import DeviceRow
from piston.runtime.backends.device_rows import DeviceRows
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.tensorrt.context import Context
from piston.runtime.backends.tensorrt.decode_step import RING, Choice, DecodeStep
from piston.runtime.backends.tensorrt.device_cache import DeviceCache
from piston.runtime.backends.tensorrt.interface import DECODE, PREFILL, Interface
from piston.runtime.backends.tensorrt.plan import Plan
from piston.runtime.backends.tensorrt.prefill_step import PrefillStep
from piston.runtime.sampling.params import SamplingParams

AHEAD = RING // 2  # steps in the stream beyond the one the host waits for: enough to hide its work


class TensorRTEngine:
    """See Engine and DeviceDecoding. Memory on the device is taken once, here; `close` or the process's end frees it.

    What TensorRT itself keeps for a context is not: a number of rows gets its context when it is first stepped.

    Args:
        cuda: the device.
        plan: the deserialized engine.
        spec: the cache's layout and type.
        num_slots: rows decoded together, at most as many as the plan was built for.
        capacity: positions of each, likewise.
        max_top_k: number of candidates of the plan's sampling.
        cross: the states over a source that the plan reads, of an encoder-decoder.

    Raises:
        MisuseError: more slots or positions than the plan has.
        DeviceMemoryError: they do not fit the device.
        EngineError: TensorRT refuses something.
    """

    def __init__(  # noqa: PLR0913
        self,
        cuda: Cuda,
        plan: Plan,
        spec: CacheSpec,
        *,
        num_slots: int,
        capacity: int,
        max_top_k: int,
        cross: CacheSpec | None = None,
    ) -> None:
        self.plan = plan
        self._interface = Interface.read(plan.engine, spec, plan.source, cross)
        self._interface.check_sizes(num_slots, capacity)
        self.vocab_size = self._interface.vocab_size
        self.cache = KVCache(spec, num_slots, capacity, device="cuda", bases=())
        self._spec, self._cross = spec, cross
        self._max_top_k = max_top_k
        self._turn = 0  # counts uses of the engine, so that a run notices other uses
        self._is_running = False
        self._is_closed = False
        with ExitStack() as stack:
            stack.callback(plan.close)
            self._stream = cuda.stream()
            stack.callback(self._stream.close)
            self._make_steps(cuda, plan, num_slots, stack)
            stack.callback(plan.save_kernels)
            # Wait first: nothing may be freed while work is still running.
            stack.callback(self._stream.synchronize)
            self._release = weakref.finalize(self, _release, stack.pop_all())

    @classmethod
    def open(cls, plan: Plan, spec: CacheSpec, *, cuda: Cuda, num_slots: int, capacity: int, max_top_k: int) -> Self:
        """Make an engine of a plan and take ownership of it, even on failure; raises as the class does."""
        try:
            return cls(cuda, plan, spec, num_slots=num_slots, capacity=capacity, max_top_k=max_top_k)
        except BaseException:
            plan.close()
            raise

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine. Work is cut into chunks; only the last `num_logits` positions reach the host."""
        ids = self._checked(token_ids)
        if not 0 <= num_logits <= len(ids):
            raise MisuseError(f"Logits of {num_logits} positions were requested from a prefill of {len(ids)} tokens.")
        self.cache.reserve(slot, len(ids))
        self._settle()
        found, start = np.empty((num_logits, self.vocab_size), np.float32), 0
        while start < len(ids):
            stop = self._chunk_end(start, len(ids), len(ids) - num_logits)
            kept = range(max(len(ids) - num_logits - start, 0), stop - start)
            source = 0 if self.cache.cross is None else int(self.cache.cross.lengths[slot])
            length = int(self.cache.lengths[slot])
            logits = self._prefill.run(self.cache.row(slot), ids[start:stop], length, kept, source)
            if num_logits == len(kept):
                found = logits  # all of them in one chunk: no copy
            else:
                done = start + kept.start - (len(ids) - num_logits)
                found[done : done + len(kept)] = logits
            self.cache.advance(slot, stop - start)
            start = stop
        return found

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """See Engine."""
        self._checked(list(tokens.values()))
        for slot in tokens:
            self.cache.reserve(slot, 1)
        if not tokens:
            return {}
        self._settle()
        placed = self._rows.gather(self.cache, tokens)
        ids = [tokens.get(slot, 0) for slot in placed]
        logits = self._decode.step(ids, self.cache.lengths[placed], self._sources(placed))
        for slot in tokens:
            self.cache.advance(slot, 1)
        return {slot: logits[row] for row, slot in enumerate(placed) if slot in tokens}

    def can_choose(self, sampling: SamplingParams) -> bool:
        """See DeviceDecoding: greedy, or temperature and top_p over a top_k that the plan's sampling covers."""
        plain = sampling.min_p == 0 and sampling.typical_p == 1
        return plain and (sampling.is_greedy or 1 <= sampling.top_k <= self._max_top_k)

    def run(self, rows: Mapping[int, DeviceRow], num_steps: int) -> Iterator[dict[int, int]]:
        """See DeviceDecoding."""
        self._checked([row.token_id for row in rows.values()])
        for slot in rows:
            self.cache.reserve(slot, num_steps)
        if not rows:
            return
        self._settle()
        placed, turn = self._rows.gather(self.cache, rows), self._turn
        ids = [rows[slot].token_id if slot in rows else 0 for slot in placed]
        self._decode.start(ids, self.cache.lengths[placed], _choice(rows, placed), self._sources(placed))
        self._is_running = True
        launched = 0
        for index in range(num_steps):
            while launched < min(index + 1 + AHEAD, num_steps):
                self._decode.advance(launched)
                launched += 1
            chosen = self._decode.tokens(index)
            for slot in rows:
                self.cache.advance(slot, 1)
            yield {slot: chosen[row] for row, slot in enumerate(placed) if slot in rows}
            if self._turn != turn:
                return

    @property
    def capture_problem(self) -> str | None:
        """Why decode steps are not captured into a CUDA graph; None if they are, or have not run twice yet."""
        return self._decode.capture_problem

    def close(self) -> None:
        """Free the device memory; the engine cannot be used afterwards."""
        self._is_closed = True
        self._turn += 1
        self._release()

    def _sources(self, slots: Sequence[int]) -> NDArray[np.int64] | None:
        """Positions of each slot's source."""
        return None if self.cache.cross is None else self.cache.cross.lengths[list(slots)]

    def _make_steps(self, cuda: Cuda, plan: Plan, num_slots: int, stack: ExitStack) -> None:
        interface = self._interface
        self._memory = memory = DeviceCache(
            cuda,
            self._stream,
            self._spec,
            num_slots,
            interface.capacity,
            cross=self._cross,
            max_source=interface.max_source,
        )
        stack.callback(memory.close)
        # Contexts never run at the same time, so they share one scratch buffer.
        scratch = cuda.allocate(max(plan.scratch_bytes, 1), "The scratch memory of TensorRT")
        stack.callback(scratch.close)

        stream = self._stream  # the finalizer must not hold a reference to the engine

        def context(profile: int) -> Context:
            made = Context(plan.create_context(is_captured=profile == DECODE), plan.log, profile, stream)
            made.use_memory(scratch.address, scratch.nbytes)
            return made

        self._rows = DeviceRows(cuda, self._stream, memory.arrays, memory.row_bytes)
        stack.callback(self._rows.close)
        self._prefill = PrefillStep(cuda, self._stream, context(PREFILL), memory, interface)
        stack.callback(self._prefill.close)
        self._decode = DecodeStep(cuda, self._stream, lambda: context(DECODE), memory, interface, num_slots)
        stack.callback(self._decode.close)

    def _settle(self) -> None:
        """Begin a new use of the engine: steps that a run did ahead finish before buffers are filled again."""
        self._turn += 1
        if self._is_running:
            self._stream.synchronize()
            self._is_running = False

    def _chunk_end(self, start: int, end: int, first_kept: int) -> int:
        """The end of the chunk that begins at `start`: at most a chunk of tokens, with no more logits than fit."""
        stop = min(start + self._interface.chunk, end)
        return min(stop, max(start, first_kept) + self._interface.max_logits)

    def _checked(self, token_ids: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int64]]:
        if self._is_closed:
            raise MisuseError("The engine is closed; load the bundle again.")
        ids = np.asarray(token_ids, np.int64)
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < self.vocab_size:
            raise MisuseError(
                f"Token ids run from {ids.min()} to {ids.max()}; the model knows 0 to {self.vocab_size - 1}."
            )
        return ids


def _release(stack: ExitStack) -> None:
    """Free everything and ignore errors: after a fault every call fails, and the fault has been reported."""
    with contextlib.suppress(EngineError):
        stack.close()


def _choice(rows: Mapping[int, DeviceRow], placed: Sequence[int]) -> Choice:
    choice = Choice(len(placed))
    for index, slot in enumerate(placed):
        row = rows.get(slot)
        if row is not None and not row.sampling.is_greedy:
            choice.temperature[index] = row.sampling.temperature
            choice.top_k[index] = row.sampling.top_k
            choice.top_p[index] = row.sampling.top_p
            choice.uniforms[index] = row.uniforms
    return choice
