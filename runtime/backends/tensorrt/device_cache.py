"""Keys and values of all rows in one piece of device memory, which both contexts read and write in place."""

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
        self._row_bytes = math.prod(self._row) * ITEM_SIZES[spec.dtype]
        self._names = cache_names(spec)
        self._array_bytes = rows * self._row_bytes
        nbytes = len(self._names) * self._array_bytes
        self._buffer = cuda.allocate(nbytes, f"The {spec.dtype} cache of {rows} rows of {capacity:,} positions")
        stream.zero(self._buffer.address, nbytes)

    def addresses(self, low: int) -> dict[str, int]:
        """Where row `low` and those after it lie, for each input and for the output that is written in its place."""
        start = self._buffer.address + low * self._row_bytes
        found = {name: start + index * self._array_bytes for index, name in enumerate(self._names)}
        return {f"{side}.{name}": address for name, address in found.items() for side in ("past", "present")}

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for a step on `rows` rows."""
        return {f"past.{name}": (rows, *self._row) for name in self._names}

    def close(self) -> None:
        """Free the memory."""
        self._buffer.close()
