"""Decode steps of ONNX Runtime on a device: their inputs and logits are there too, at addresses that stay.

This is necessary: ONNX Runtime copies host inputs to the device when they are bound, and a binding that is run again
uses the old copy (seen in 1.31). It also lets ONNX Runtime capture a run into a CUDA graph under a number
(`gpu_graph_id`) and launch the graph whenever that number is given again. Values that it read on the host during
capture are fixed from then on. Here that is `total_sequence_length`, which is therefore set to the capacity: kernels
use it to divide the work, and `kv_lengths` to find the end of each row.
"""

import itertools
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import EngineError
from piston.runtime.backends.cuda_driver import Cuda, Stream, warn_not_captured
from piston.runtime.backends.device_block import MOVING, Block
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.kv_cache import KVCache
from piston.runtime.backends.ort_cpu import bind_cache
from piston.runtime.backends.session import translated

NO_GRAPH = "-1"  # the graph id of runs that are not captured
INTEGERS = (*MOVING, "logits_positions")
TOTAL = "total_sequence_length"


class DeviceStep:
    """The buffers of a step on the first rows, and one binding for each number of them; `close` frees the buffers.

    Args:
        session: made with `user_compute_stream`, and with `enable_cuda_graph` where runs are to be captured.
        cuda: the device.
        stream: the one the session was made with, so that copies and runs need not wait for one another.
        cache: where the session finds keys and values.
        vocab_size: logits of a row.
        capture_problem: why steps are not captured into CUDA graphs; None if they are.

    Raises:
        DeviceMemoryError: the buffers do not fit.
    """

    def __init__(
        self, session: Any, cuda: Cuda, stream: Stream, cache: KVCache, vocab_size: int, capture_problem: str | None
    ) -> None:
        self.capture_problem = capture_problem  # why steps are not captured, if they are not
        self._session, self._stream, self._cache, self._vocab_size = session, stream, cache, vocab_size
        self._inputs = {item.name for item in session.get_inputs()}
        self._total = np.array([cache.capacity], np.int32)
        self._bound: dict[int, tuple[Any, Any]] = {}
        self._numbers = itertools.count(1)
        purpose = f"A step of {cache.num_slots} rows"
        with ExitStack() as stack:
            self._block = Block(cuda, dict.fromkeys(INTEGERS, (cache.num_slots, np.int64)), purpose)
            stack.callback(self._block.close)
            self._host = cuda.pinned((cache.num_slots, vocab_size), np.float32, purpose)
            stack.callback(self._host.close)
            self._logits = cuda.allocate(self._host.array.nbytes, purpose)
            stack.callback(self._logits.close)
            self._stack = stack.pop_all()

    def run(self, ids: Sequence[int], lengths: NDArray[np.int64]) -> Logits:
        """Append a token to each of the first rows; logits float32 [rows, vocab], valid until the next step.

        Raises:
            EngineError: the run failed. A failed capture only gives a warning, and later runs are not captured.
        """
        rows = len(ids)
        self._block.fill(ids, lengths)
        self._block.upload(self._stream, INTEGERS[0])
        self._launch(rows)
        host = self._host.array[:rows]
        self._stream.download(self._host.address, self._logits.address, host.nbytes)
        self._stream.synchronize()
        return host

    def close(self) -> None:
        """Drop the captured graphs and free the buffers; the stream must be idle."""
        self._bound.clear()
        self._session = None
        self._stack.close()

    def _launch(self, rows: int) -> None:
        is_new = rows not in self._bound
        if is_new:
            number = NO_GRAPH if self.capture_problem else str(next(self._numbers))
            self._bound[rows] = self._bind(rows), run_options(number)
        try:
            with translated("running a step"):
                self._session.run_with_iobinding(*self._bound[rows])
        except EngineError as problem:
            if not is_new or self.capture_problem:
                raise
            self.capture_problem = str(problem)
            warn_not_captured(problem)
            self._bound.clear()
            self._launch(rows)

    def _bind(self, rows: int) -> Any:
        binding = self._session.io_binding()
        shapes = {name: [rows, 1] for name in ("input_ids", "position_ids", "logits_positions")}
        for name in INTEGERS:
            if name in self._inputs:
                address, shape = self._block.address(name), shapes.get(name, [rows])
                binding.bind_input(name, "cuda", 0, np.int64, shape, address)
        if TOTAL in self._inputs:  # absent in bundles built before steps were captured
            binding.bind_input(TOTAL, "cpu", 0, np.int32, [], self._total.ctypes.data)
        binding.bind_output("logits", "cuda", 0, np.float32, [rows, 1, self._vocab_size], self._logits.address)
        bind_cache(binding, self._cache, 0, rows)
        return binding


def run_options(number: str) -> Any:
    """Run options: captured under its own graph id, or not captured (NO_GRAPH)."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.add_run_config_entry("gpu_graph_id", number)
    return options
