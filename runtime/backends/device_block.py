"""The small tensors of a step in one block of device memory, mirrored on the host: one copy moves them all."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from piston.runtime.backends.cuda_driver import Cuda, DeviceBuffer, PinnedArray, Stream

ALIGNMENT = 256  # bytes: TensorRT reads tensors from addresses that are multiples of it

MOVING = (
    "input_ids",
    "position_ids",
    "write_indices",
    "kv_lengths",
)  # arrays that change from one decode step to the next

Fields = Mapping[str, tuple[int, type[np.generic]]]


class Block:
    """Named arrays, contiguous on the device and on the host.

    Args:
        cuda: the device.
        fields: elements and type of each array, in memory order.
        purpose: what the memory is for, in errors.
        on_host: whether there is a host copy; outputs that stay on the device need none.
    """

    def __init__(self, cuda: Cuda, fields: Fields, purpose: str, *, on_host: bool = True) -> None:
        self.offsets: dict[str, int] = {}
        nbytes = 0
        for name, (count, dtype) in fields.items():
            self.offsets[name] = nbytes
            nbytes += _aligned(count * np.dtype(dtype).itemsize)
        self.nbytes = nbytes
        self._device: DeviceBuffer = cuda.allocate(nbytes, purpose)
        self._host: PinnedArray | None = None
        self.arrays: dict[str, NDArray[np.generic]] = {}
        try:
            if on_host:
                self._host = cuda.pinned((nbytes,), np.uint8, purpose)
        except BaseException:
            self._device.close()
            raise
        for name, (count, dtype) in fields.items() if self._host else ():
            part = self._host.array[self.offsets[name] :][: count * np.dtype(dtype).itemsize]  # type: ignore[union-attr]
            self.arrays[name] = part.view(dtype)

    def fill(self, ids: Sequence[int], lengths: NDArray[np.int64]) -> None:
        """Fill the host arrays that change in a decode step: one token after each of the rows of these lengths."""
        values = (np.asarray(ids, np.int64), lengths, lengths, lengths + 1)
        for name, value in zip(MOVING, values, strict=True):
            self.arrays[name][: len(ids)] = value

    def address(self, name: str) -> int:
        """Device address of an array."""
        return self._device.address + self.offsets[name]

    def upload(self, stream: Stream, first: str, end: str | None = None) -> None:
        """Copy the arrays from `first` up to, not including, `end` to the device; without `end`, to the last."""
        assert self._host is not None
        start, stop = self.offsets[first], self.nbytes if end is None else self.offsets[end]
        stream.upload(self._device.address + start, self._host.address + start, stop - start)

    def download(self, stream: Stream, name: str, nbytes: int) -> None:
        """Copy the first bytes of an array to the host."""
        assert self._host is not None
        stream.download(self._host.address + self.offsets[name], self.address(name), nbytes)

    def close(self) -> None:
        """Free both sides."""
        self.arrays.clear()
        if self._host is not None:
            self._host.close()
        self._device.close()


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
