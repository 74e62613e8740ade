"""Keys and values of all rows in one piece of device memory, which all contexts read and write in place.

So are those over the sources of an encoder-decoder, which steps only read.
"""

from itertools import accumulate

from piston.core.bundle.interface import CacheSpec
from piston.runtime.backends.cuda_driver import Cuda, Stream


class DeviceCache:
    """[rows, kv_heads, capacity, head_dim] for each layer's keys and values, zeroed; freed by `close`.

    Zeroed, since kernels multiply values after a row's last position by zero, which NaN would survive.

    Args:
        cuda: the device.
        stream: in which the memory is zeroed.
        spec: of the rows' own states.
        rows: of each state.
        capacity: positions of each row.
        cross: states over sources, which come behind; with `max_source` positions of each row.
        max_source: see `cross`.
    """

    def __init__(  # noqa: PLR0913
        self,
        cuda: Cuda,
        stream: Stream,
        spec: CacheSpec,
        rows: int,
        capacity: int,
        *,
        cross: CacheSpec | None = None,
        max_source: int = 0,
    ) -> None:
        self._states = [(state, capacity) for state in spec.states]
        self._states += [] if cross is None else [(state, max_source) for state in cross.states]
        self.row_bytes, array_bytes = (
            [state.nbytes(count, size) for state, size in self._states] for count in (1, rows)
        )
        self._offsets = list(accumulate([0, *array_bytes[:-1]]))
        nbytes = sum(array_bytes)
        self._buffer = cuda.allocate(nbytes, f"The {spec.dtype} cache of {rows} rows of {capacity:,} positions")
        stream.zero(self._buffer.address, nbytes)

    @property
    def arrays(self) -> list[int]:
        """Where each state begins."""
        return [self._buffer.address + offset for offset in self._offsets]

    def addresses(self, row: int) -> dict[str, int]:
        """The address of `row` for each input and for the output that is written in its place.

        States over a source have one name.
        """
        found: dict[str, int] = {}
        for (state, _), start, row_bytes in zip(self._states, self.arrays, self.row_bytes, strict=True):
            found[state.input] = found[state.output] = start + row * row_bytes
        return found

    def shapes(self, rows: int) -> dict[str, tuple[int, ...]]:
        """The shape of each input for a step on `rows` rows."""
        return {state.input: state.sizes(rows, size) for state, size in self._states}

    def close(self) -> None:
        """Free the memory."""
        self._buffer.close()
