"""Rows of a cache in device memory, moved so that those of a step are the first ones.

A CUDA graph of a step holds addresses and a number of rows. Over the first 1, 2, 4, 8, ... rows there are few graphs;
over any range of rows there would be thousands, each with its own device memory.
"""

from collections.abc import Iterable, Sequence

from piston.runtime.backends.cuda_driver import Cuda, Stream
from piston.runtime.backends.kv_cache import KVCache


class DeviceRows:
    """Moves the keys and values of a cache's slots as `KVCache.gather` says.

    Args:
        cuda: the device.
        stream: the stream of the steps, so that a move comes after the step before it.
        arrays: address of each state; its rows are contiguous.
        row_bytes: of one row of each state.

    Raises:
        DeviceMemoryError: there is no room for one more row of one array.
    """

    def __init__(self, cuda: Cuda, stream: Stream, arrays: Sequence[int], row_bytes: Sequence[int]) -> None:
        self._stream, self._states = stream, list(zip(arrays, row_bytes, strict=True))
        self._room = cuda.allocate(max(row_bytes), "Room to exchange two rows of the cache")

    def gather(self, cache: KVCache, slots: Iterable[int]) -> list[int]:
        """Move `slots` into the first rows; return the slots of these rows in order, idle ones included."""
        placed, moves = cache.gather(slots)
        for move in moves:
            for array, row_bytes in self._states:
                source, goal = (array + row * row_bytes for row in (move.source, move.goal))
                if move.is_exchange:
                    self._stream.copy(self._room.address, goal, row_bytes)
                self._stream.copy(goal, source, row_bytes)
                if move.is_exchange:
                    self._stream.copy(source, self._room.address, row_bytes)
        return placed

    def close(self) -> None:
        """Free the spare row; the stream must be idle."""
        self._room.close()
