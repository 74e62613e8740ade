"""The small tensors of a step in one block of device memory, mirrored on the host: one copy moves them all."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from piston.runtime.cuda import Cuda, DeviceBuffer, PinnedArray, Stream
from piston.runtime.tensorrt.interface import MOVING

ALIGNMENT = 256  # bytes: TensorRT reads tensors from addresses that are multiples of it

Fields = Mapping[str, tuple[int, type[np.generic]]]


class Block:
    """Named arrays, one after another, on the device and on the host.

    Args:
        cuda: the device.
        fields: elements and type of each array, in the order they lie in memory.
        purpose: what the memory is for, in errors.
        on_host: whether there is a host side: outputs that stay on the device have none.
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

    def address(self, name: str) -> int:
        """Device address of an array."""
        return self._device.address + self.offsets[name]

    def upload(self, stream: Stream, first: str, end: str | None = None) -> None:
        """Copy the arrays from `first` up to, not including, `end` to the device; without `end`, to the last."""
        assert self._host is not None
        start, stop = self.offsets[first], self.nbytes if end is None else self.offsets[end]
        stream.upload(self._device.address + start, self._host.address + start, stop - start)

    def close(self) -> None:
        """Free both sides."""
        self.arrays.clear()
        if self._host is not None:
            self._host.close()
        self._device.close()


def input_fields(rows: int, seq: int, kept: int, capacity: int) -> Fields:
    """The inputs of a step of at most rows x seq tokens with rows x kept logits; the moving ones come first."""
    integers = zip(MOVING, (rows * seq, rows * seq, rows, rows), strict=True)
    return {
        **{name: (count, np.int64) for name, count in integers},
        "logits_positions": (rows * kept, np.int64),
        "temperature": (rows, np.float32),
        "top_k": (rows, np.int64),
        "top_p": (rows, np.float32),
        "uniforms": (rows * capacity, np.float32),
    }


def output_fields(rows: int, kept: int) -> Fields:
    """The outputs that the next step takes; for kept = 1 they lie as its inputs do, so that one copy moves them."""
    counts = (rows * kept, rows * kept, rows, rows)
    return {f"next.{name}": (count, np.int64) for name, count in zip(MOVING, counts, strict=True)}


def moving_bytes(block: Block) -> int:
    """How much of a block of inputs a step hands to the next."""
    return block.offsets["logits_positions"]


def cache_bytes(rows: int, heads: int, capacity: int, head_dim: int, item_size: int) -> int:
    """Bytes of one key or value cache."""
    return math.prod((rows, heads, capacity, head_dim, item_size))


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT) * ALIGNMENT
