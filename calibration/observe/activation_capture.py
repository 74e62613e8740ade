"""A canonical graph that also returns chosen inner values, in ONNX Runtime, with its cache in place.

What no chosen value depends on is cut off: asking for early layers runs early layers, and the vocabulary is never
reached. Weights stay in the file beside the graph; nothing is written.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from piston.core.bundle.interface import CacheSpec, is_past, is_present
from piston.core.errors import MisuseError
from piston.core.machine import num_cores
from piston.graph.tap import GraphTap
from piston.runtime.backends.buffers import step_feed
from piston.runtime.backends.ort_run import bind_state, fetch
from piston.runtime.backends.session import translated

Array = NDArray[np.float32]
LONGEST_CHUNK, SHORTEST_CHUNK = 256, 32  # tokens; 256 is fastest on two cores (135M Llama, ONNX Runtime 1.32)
EXPOSED_BYTES = 256 << 20  # of chosen values alive at once


def add_outputs(model: ir.Model, names: Sequence[str]) -> None:
    """Make `names` the outputs of the graph, with what is left of its cache, and drop what they do not need.

    Inputs of floats are left out.

    Raises:
        MisuseError: a name is no computed float value of the graph.
    """
    graph, values = model.graph, GraphTap(model).values
    read = {value.name for value in graph.inputs if value.dtype == ir.DataType.FLOAT and not is_past(value.name)}
    names = [name for name in names if name not in read]
    for name in names:
        if (
            name not in values
            or is_present(name)
            or name.startswith("logits")
            or values[name].dtype != ir.DataType.FLOAT
        ):
            raise MisuseError(
                f"The graph computes no inner float value {name!r}; see `piston.calibration.graph.linears`."
            )
    graph.outputs[:] = [values[name] for name in names]
    common.RemoveUnusedNodesPass()(model)
    left = [value for node in graph for value in node.outputs if is_present(value.name)]
    graph.outputs.extend(left)
    for value in [value for value in graph.inputs if not value.uses()]:
        graph.inputs.remove(value)


class ActivationCapture:
    """Runs rows of tokens from position 0, one at a time, and hands out the chosen values chunk by chunk.

    `inputs` are the names of the inputs that the chosen values depend on.

    Args:
        session: of a graph that went through `expose`.
        cache: of the model, without states for an encoder; ONNX Runtime computes it in float32.
        names: the chosen values.
        capacity: positions of the longest row.
    """

    def __init__(self, session: Any, cache: CacheSpec, names: Sequence[str], capacity: int) -> None:
        self.names = tuple(names)
        # Without states nothing is carried from chunk to chunk: a row is run whole.
        self.chunk = _chunk(session, names, capacity) if cache.states else capacity
        self._session = session
        self.inputs = set() if session is None else {item.name for item in session.get_inputs()}
        # What a row leaves behind its end is never read by the next one: kv_lengths ends before it.
        self._states = [
            (state, np.zeros(state.sizes(1, capacity), np.float32))
            for state in cache.states
            if state.input in self.inputs
        ]

    @classmethod
    def open(cls, path: Path, cache: CacheSpec, names: Sequence[str], capacity: int, *, threads: int = 0) -> Self:
        """Load the canonical graph at `path`.

        Raises:
            MisuseError: a name is no inner value.
            EngineError: ONNX Runtime refuses the graph.
        """
        model = ir.load(path)
        add_outputs(model, names)
        if not model.graph.outputs:  # all are inputs of the graph
            return cls(None, cache, names, capacity)
        return cls(_session(model, path.parent, threads), cache, names, capacity)

    def run(
        self, token_ids: NDArray[np.int64] | None, others: Mapping[str, NDArray[Any]] | None = None
    ) -> Iterator[dict[str, Array]]:
        """Run one row [tokens] and yield the chosen values of each chunk, [1, at most `chunk` tokens, ...].

        The dictionaries are the caller's: an emptied one frees the arrays before the next chunk is computed.

        Args:
            token_ids: None for a row that is no text; it is run whole.
            others: more inputs by name, the same for every chunk; an input is a value, too.
        """
        if token_ids is None:
            yield self._step(others or {})
            return
        for start in range(0, len(token_ids), self.chunk):
            yield self._step({**(others or {}), **step_feed(token_ids[start : start + self.chunk], start)})

    def close(self) -> None:
        """Give the memory back."""
        self._session = None
        self._states.clear()

    def _step(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
        read = {name: np.asarray(feeds[name], np.float32) for name in self.names if name in feeds}
        names = [name for name in self.names if name not in read]
        return read | (self._run(feeds, names) if names else {})

    def _run(self, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]) -> dict[str, Array]:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            if name in self.inputs:
                binding.bind_cpu_input(name, np.ascontiguousarray(array))
        for state, memory in self._states:
            bind_state(binding, state, memory)
        with translated("running a calibration row"):
            found = fetch(self._session.run_with_iobinding, binding, names)
        return dict(zip(names, found, strict=True))


@contextmanager
def opened(path: Path, cache: CacheSpec, names: Sequence[str], capacity: int) -> Iterator[ActivationCapture]:
    """An ActivationCapture that is closed at the end of the block."""
    graph = ActivationCapture.open(path, cache, names, capacity)
    try:
        yield graph
    finally:
        graph.close()


def _chunk(session: Any, names: Sequence[str], capacity: int) -> int:
    """Tokens to run at once: fewer where the chosen values together are wide."""
    shapes = {item.name: item.shape for item in session.get_outputs()}
    per_token = 4 * sum(math.prod(dim for dim in shapes[name] if isinstance(dim, int)) for name in names)
    return min(capacity, max(SHORTEST_CHUNK, min(LONGEST_CHUNK, EXPOSED_BYTES // max(per_token, 1))))


def _session(model: ir.Model, data_dir: Path, threads: int) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads or num_cores()
    settings.log_severity_level = 3
    # As it is written: folding constants would keep the casts of narrow weights, and nothing else gains (1.32).
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    settings.enable_cpu_mem_arena = False  # an arena keeps its peak; without it a row costs the same
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")  # consumers work in between
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", str(data_dir.resolve()))
    with translated(f"loading the graph in {data_dir}"):
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), settings, providers=["CPUExecutionProvider"]
        )
