"""Keys and values of all rows in one piece of device memory, which all contexts read and write in place."""

import math

from piston.core.bundle.manifest import ITEM_SIZES, CacheSpec
from piston.runtime.backends.cuda_driver import Cuda, Stream
from piston.runtime.backends.tensorrt.interface import cache_names


class DeviceCache:
    """[rows, num_kv_heads, capacity, head_dim] for each layer's keys and values, zeroed; freed by `close`.

    Zeroed, since what a kernel reads behind a row's last position is multiplied by zero, which NaN would survive.
    """

    def __init__(self, cuda: Cuda, stream: Stream, spec: CacheSpec, rows: int, capacity: int) -> None:
        self._row = (spec.num_kv_heads, capacity, spec.head_dim)
        self.row_bytes = math.prod(self._row) * ITEM_SIZES[spec.dtype]
        self._names = cache_names(spec)
        self._array_bytes = rows * self.row_bytes
        nbytes = len(self._names) * self._array_bytes
        self._buffer = cuda.allocate(nbytes, f"The {spec.dtype} cache of {rows} rows of {capacity:,} positions")
        stream.zero(self._buffer.address, nbytes)

    @property
    def arrays(self) -> list[int]:
        """Where each layer's keys and values begin."""
        return [self._buffer.address + index * self._array_bytes for index in range(len(self._names))]

    def addresses(self, row: int) -> dict[str, int]:
        """Where `row` and those after it lie, for each input and for the output that is written in its place."""
        found = {name: start + row * self.row_bytes for name, start in zip(self._names, self.arrays, strict=True)}
        return {f"{side}.{name}": address for name, address in found.items() for side in ("past", "present")}

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for a step on `rows` rows."""
        return {f"past.{name}": (rows, *self._row) for name in self._names}

    def close(self) -> None:
        """Free the memory."""
        self._buffer.close()
