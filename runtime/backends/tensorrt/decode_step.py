"""A decode step: one token for each of the first rows, with inputs from the host or from the previous step.

After the first step on a number of rows, steps on that number are captured and launched as one graph.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import ALIGNMENT, SOURCE_LENGTHS
from piston.core.errors import EngineError
from piston.runtime.backends.cuda_driver import Cuda, Graph, Stream, warn_not_captured
from piston.runtime.backends.device_block import MOVING, Block
from piston.runtime.backends.tensorrt.context import Context
from piston.runtime.backends.tensorrt.device_cache import DeviceCache
from piston.runtime.backends.tensorrt.fields import input_fields, moving_bytes, output_fields
from piston.runtime.backends.tensorrt.interface import Interface

PURPOSE = "The decode step"
RING = 8  # steps that the device may work ahead: the host's ring buffer holds their tokens


@dataclass(slots=True)
class Captured:
    """A context with the shapes for one number of rows, and its captured graphs.

    A graph is valid as long as its context does not change, so each number of rows has its own context.
    """

    rows: int
    context: Context
    graphs: dict[str, Graph] = field(default_factory=dict)
    has_run: set[str] = field(default_factory=set)

    def close(self) -> None:
        """Free the graphs, then drop the context; none of its work may be under way."""
        for graph in self.graphs.values():
            graph.close()
        self.graphs.clear()
        self.context.close()


class DecodeStep:
    """The buffers of a step, and a context with its graphs for each number of rows.

    `make_context` gives a new context of the decode profile.
    """

    def __init__(
        self,
        cuda: Cuda,
        stream: Stream,
        make_context: Callable[[], Context],
        cache: DeviceCache,
        interface: Interface,
        num_slots: int,
    ) -> None:
        self._stream, self._make_context, self._cache = stream, make_context, cache
        self._capacity, self._vocab_size, self._names = interface.capacity, interface.vocab_size, interface.inputs
        self._captured: dict[int, Captured] = {}  # by rows
        self.capture_problem: str | None = None  # why steps are not captured, if they are not
        self._stack = ExitStack()
        with self._stack:
            fields = input_fields(num_slots, 1, 1, interface.capacity, has_lengths=interface.has_lengths)
            self._inputs = Block(cuda, fields, PURPOSE)
            self._stack.callback(self._inputs.close)
            self._outputs = Block(cuda, output_fields(num_slots, 1), PURPOSE, on_host=False)
            self._stack.callback(self._outputs.close)
            nbytes = num_slots * interface.vocab_size * 4
            self._device_logits = cuda.allocate(nbytes, PURPOSE)
            self._stack.callback(self._device_logits.close)
            self._host_logits = cuda.pinned((num_slots, interface.vocab_size), np.float32, PURPOSE)
            self._stack.callback(self._host_logits.close)
            self._unread: dict[str, int] = {}
            if interface.alignment:
                unread = cuda.allocate(interface.alignment * num_slots, PURPOSE)
                self._stack.callback(unread.close)
                self._unread = {ALIGNMENT: unread.address}
            self._ring = cuda.pinned((RING, num_slots), np.int64, PURPOSE)
            self._stack.callback(self._ring.close)
            self._events = [cuda.event() for _ in range(RING)]
            for event in self._events:
                self._stack.callback(event.close)
            self._stack.callback(self._drop)
            self._now = self._enter(1)  # a plan without a context fails when it is opened
            self._inputs.arrays["top_k"][:] = 1
            self._inputs.arrays["top_p"][:] = 1
            if SOURCE_LENGTHS.name in self._inputs.arrays:
                self._inputs.arrays[SOURCE_LENGTHS.name][:] = 1
            self._inputs.upload(stream, "input_ids")
            stream.synchronize()
            self._stack = self._stack.pop_all()

    def step(
        self, ids: Sequence[int], lengths: NDArray[np.int64], sources: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32]:
        """Append a token to each of the first rows; logits float32 [rows, vocab], valid until the next step.

        `sources` are the positions of each row's source, of an encoder-decoder.
        """
        self._now, rows = self._enter(len(ids)), len(ids)
        self._fill(ids, lengths, sources)

        def enqueue() -> None:
            self._inputs.upload(self._stream, MOVING[0], "temperature")
            self._now.context.run()
            nbytes = rows * self._vocab_size * 4
            self._stream.download(self._host_logits.address, self._device_logits.address, nbytes)

        self._perform("step", enqueue)
        self._stream.synchronize()
        return self._host_logits.array[:rows]

    def start(
        self,
        ids: Sequence[int],
        lengths: NDArray[np.int64],
        choice: "Choice",
        sources: NDArray[np.int64] | None = None,
    ) -> None:
        """Prepare steps of the first rows whose outputs feed the next step; see `step`."""
        self._now = self._enter(len(ids))
        self._fill(ids, lengths, sources)
        arrays, rows = self._inputs.arrays, len(ids)
        for name, values in (("temperature", choice.temperature), ("top_k", choice.top_k), ("top_p", choice.top_p)):
            arrays[name][:rows] = values
        drawn = [row for row in range(rows) if choice.temperature[row] > 0]
        table = arrays["uniforms"].reshape(-1, self._capacity)
        for row in drawn:  # the token after position p is drawn with number p
            numbers = choice.uniforms[row][: self._capacity - int(lengths[row])]
            table[row, int(lengths[row]) : int(lengths[row]) + len(numbers)] = numbers
        self._inputs.upload(self._stream, MOVING[0], None if drawn else "uniforms")

    def advance(self, index: int) -> None:
        """Enqueue step `index` since `start`, and the copy of its tokens to the host."""
        rows, place = self._now.rows, index % RING

        def enqueue() -> None:
            self._now.context.run()
            goal, source = self._inputs.address(MOVING[0]), self._outputs.address(f"next.{MOVING[0]}")
            self._stream.copy(goal, source, moving_bytes(self._inputs))

        self._perform("run", enqueue)
        source = self._outputs.address(f"next.{MOVING[0]}")
        self._stream.download(self._ring.address_of(place), source, rows * self._ring.array.itemsize)
        self._stream.record(self._events[place])

    def tokens(self, index: int) -> list[int]:
        """Wait for step `index` and return the token chosen for each row."""
        self._events[index % RING].wait()
        return [int(token) for token in self._ring.array[index % RING, : self._now.rows]]

    def close(self) -> None:
        """Drop graphs and contexts, then free the buffers."""
        self._stack.close()

    def _fill(self, ids: Sequence[int], lengths: NDArray[np.int64], sources: NDArray[np.int64] | None) -> None:
        self._inputs.fill(ids, lengths)
        if sources is not None and SOURCE_LENGTHS.name in self._inputs.arrays:
            self._inputs.arrays[SOURCE_LENGTHS.name][: len(ids)] = sources

    def _enter(self, rows: int) -> Captured:
        """The context and graphs for steps of the first `rows` rows, created at first use."""
        if (found := self._captured.get(rows)) is not None:
            return found
        context = self._make_context()
        context.bind({name: self._inputs.address(name) for name in self._names} | self._unread)
        context.bind({f"next.{name}": self._outputs.address(f"next.{name}") for name in MOVING})
        context.bind({"logits": self._device_logits.address, **self._cache.addresses(0)})
        context.shape(dict.fromkeys(("input_ids", "position_ids", "logits_positions"), (rows, 1)))
        context.shape(dict.fromkeys(("write_indices", "kv_lengths", "temperature", "top_k", "top_p"), (rows,)))
        context.shape({"uniforms": (rows, self._capacity), **self._cache.shapes(rows)})
        if SOURCE_LENGTHS.name in self._names:
            context.shape({SOURCE_LENGTHS.name: (rows,)})
        self._captured[rows] = Captured(rows, context)
        return self._captured[rows]

    def _perform(self, kind: str, enqueue: Callable[[], None]) -> None:
        """Run a step: directly the first time, since backends allocate lazily; as a captured graph afterwards."""
        now = self._now
        if kind not in now.graphs and kind in now.has_run and self.capture_problem is None:
            self._capture(kind, enqueue)
        if kind in now.graphs:
            now.graphs[kind].launch(self._stream)
        else:
            enqueue()
        now.has_run.add(kind)

    def _capture(self, kind: str, enqueue: Callable[[], None]) -> None:
        try:
            self._now.context.check_capturable()
            with self._stream.capturing() as capture:
                enqueue()
            self._now.graphs[kind] = capture.graph
        except EngineError as problem:
            self.capture_problem = str(problem)
            warn_not_captured(problem)

    def _drop(self) -> None:
        for captured in self._captured.values():
            captured.close()
        self._captured.clear()


class Choice:
    """How the device chooses the tokens of rows: greedily by default."""

    def __init__(self, rows: int) -> None:
        self.temperature = np.zeros(rows, np.float32)
        self.top_k = np.ones(rows, np.int64)
        self.top_p = np.ones(rows, np.float32)
        self.uniforms: list[NDArray[np.float32]] = [np.zeros(0, np.float32) for _ in range(rows)]
