"""Keys and values of all rows in one piece of device memory, which all contexts read and write in place."""

from itertools import accumulate

from piston.core.bundle.interface import CacheSpec
from piston.runtime.backends.cuda_driver import Cuda, Stream


class DeviceCache:
    """[rows, kv_heads, capacity, head_dim] for each layer's keys and values, zeroed; freed by `close`.

    Zeroed, since kernels multiply values after a row's last position by zero, which NaN would survive.
    """

    def __init__(self, cuda: Cuda, stream: Stream, spec: CacheSpec, rows: int, capacity: int) -> None:
        self._spec, self._capacity = spec, capacity
        self.row_bytes, array_bytes = spec.array_bytes(1, capacity), spec.array_bytes(rows, capacity)
        self._offsets = list(accumulate([0, *array_bytes[:-1]]))
        nbytes = sum(array_bytes)
        self._buffer = cuda.allocate(nbytes, f"The {spec.dtype} cache of {rows} rows of {capacity:,} positions")
        stream.zero(self._buffer.address, nbytes)

    @property
    def arrays(self) -> list[int]:
        """Where each state begins."""
        return [self._buffer.address + offset for offset in self._offsets]

    def addresses(self, row: int) -> dict[str, int]:
        """The address of `row` for each input and for the output that is written in its place."""
        found: dict[str, int] = {}
        for state, start, row_bytes in zip(self._spec.states, self.arrays, self.row_bytes, strict=True):
            found[state.input] = found[state.output] = start + row * row_bytes
        return found

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for a step on `rows` rows."""
        return {state.input: state.sizes(rows, self._capacity) for state in self._spec.states}

    def close(self) -> None:
        """Free the memory."""
        self._buffer.close()
