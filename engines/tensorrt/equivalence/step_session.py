"""One graph in ONNX Runtime with a cache of a few rows bound in place: any batch, any positions, any padding.

It runs canonical and lowered graphs alike, and gives out whatever values a parity check asks for. No slots, no chunks.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec, is_present
from piston.runtime.backends.ort_run import bind_state, fetch
from piston.runtime.backends.session import OrtOptions, open_session, translated

Array = NDArray[Any]
NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}
GARBAGE = 1e3  # what lies behind the valid entries: a graph that reads it must be caught


class StepSession:
    """Rows of `capacity` positions in the type the graph keeps."""

    def __init__(self, path: Path, spec: CacheSpec, rows: int, capacity: int, options: OrtOptions) -> None:
        self.options = options
        self.open(path)
        self.caches = [
            (state, np.full(state.sizes(rows, capacity), GARBAGE, self.types[state.input])) for state in spec.states
        ]

    def reopened(self, path: Path) -> "StepSession":
        """Another graph on the very same caches."""
        other = copy.copy(self)
        other.open(path)
        return other

    @property
    def vocab_size(self) -> int:
        """The last dimension of the logits."""
        return int(next(item.shape[-1] for item in self._session.get_outputs() if item.name == "logits"))

    def open(self, path: Path) -> None:
        """Load a graph that keeps the same caches."""
        self._session = open_session(path, self.options)
        self.types = {item.name: NUMPY[item.type] for item in self._session.get_inputs()}
        self.outputs = [item.name for item in self._session.get_outputs()]

    def run(self, feed: Mapping[str, Array], low: int, high: int) -> dict[str, Array]:
        """Run one step on rows low .. high; every output but the caches, by name.

        What the graph has no input for is not fed; floats are given in the type it reads.
        """
        binding = self._session.io_binding()
        for name, array in feed.items():
            if name in self.types:
                with np.errstate(over="ignore"):  # infinity in a narrow type: the check looks for it
                    given = np.ascontiguousarray(array, self.types[name])
                binding.bind_cpu_input(name, given)
        for state, cache in self.caches:
            bind_state(binding, state, cache[low:high])
        wanted = [name for name in self.outputs if not is_present(name)]
        with translated("proving a graph for TensorRT"):
            found = fetch(self._session.run_with_iobinding, binding, wanted)
        return {name: array.copy() for name, array in zip(wanted, found, strict=True)}
