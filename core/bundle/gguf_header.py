"""The header of a GGUF file: its keys, and where each tensor is stored; no weight is read.

Every length and count is compared with the bytes that are left before memory is allocated for it, so a damaged or
forged file ends in a one-line error. Versions 2 and 3 of the format, little-endian.
"""

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from piston.core.errors import CheckpointError

MAX_ITEMS = 1_000_000  # keys, tensors, or elements of an array
MAX_STRING = 100_000_000  # bytes
MAX_DIMS = 8
ALIGNMENT = 32
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Storage type: values of a block, and its bytes. Types that ggml has dropped are absent.
BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 40), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1), 25: (1, 2),
    26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66), 39: (32, 17),
    40: (64, 36), 41: (128, 18),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """`shape` has the fastest dimension first, as the file states it; `offset` counts from the start of the data."""

    shape: tuple[int, ...]
    kind: int
    offset: int

    @property
    def size(self) -> int:
        """Bytes in the file.

        Raises:
            ValueError: an unknown storage type, or rows that are not whole blocks.
        """
        if self.kind not in BLOCKS:
            raise ValueError(f"has the unknown storage type {self.kind}")
        values, size = BLOCKS[self.kind]
        if (self.shape or (1,))[0] % values:
            raise ValueError(f"has rows of {self.shape[0]}, not a multiple of the {values} values of a block")
        return math.prod(self.shape) // values * size


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """Keys with their values (numbers, booleans, strings, lists of these), tensors by name, and where data starts."""

    path: Path
    keys: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]
    data_start: int
    file_size: int

    @property
    def name(self) -> str:
        """The name of the file."""
        return self.path.name

    @property
    def part(self) -> str | None:
        """Which part of a split file it is, as "part 2 of 3 of a split GGUF file"; None for a whole file."""
        count = self.keys.get("split.count", 0)
        number = self.keys.get("split.no", 0)
        if count in (0, 1):
            return None
        return f"part {number + 1 if isinstance(number, int) else number} of {count} of a split GGUF file"

    @property
    def merging(self) -> str:
        """The command that makes one file of the parts."""
        first = re.sub(r"\d{5}(-of-\d{5}\.gguf)$", r"00001\1", self.name)
        return f"llama-gguf-split --merge {first} MERGED.gguf"

    @classmethod
    def read(cls, path: Path) -> "GgufHeader":
        """Read the header of the file at `path`.

        Raises:
            CheckpointError: it is not a GGUF file of a known version, or its header is damaged.
        """
        try:
            with path.open("rb") as file:
                return _Reader(file, path.stat().st_size).read(path)
        except OSError as problem:
            raise CheckpointError(
                f"{path.name} cannot be read ({problem.strerror}); check its permissions."
            ) from problem
        except ValueError as problem:
            raise CheckpointError(f"The header of {path.name} cannot be read: {problem}; copy it again.") from problem

    def check_data(self) -> None:
        """Compare the header with the size of the file.

        Raises:
            CheckpointError: a tensor is outside the file or overlaps another, or its size is impossible.
        """
        end, last = 0, "the header"
        for name, tensor in sorted(self.tensors.items(), key=lambda item: item[1].offset):
            try:
                size = tensor.size
            except ValueError as problem:
                raise CheckpointError(f"Tensor {name} of {self.name} {problem}.") from problem
            if tensor.offset < end:
                raise CheckpointError(
                    f"Tensors {last} and {name} of {self.name} overlap; it is damaged, copy it again."
                )
            end, last = tensor.offset + size, name
        if self.data_start + end > self.file_size and self.tensors:
            raise CheckpointError(
                f"{self.name} has {self.file_size:,} bytes, but tensor {last} ends at byte {self.data_start + end:,}: "
                "it was truncated, copy it again."
            )


class _Reader:
    """Reads forward through one open file."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size

    def read(self, path: Path) -> GgufHeader:
        magic, version = struct.unpack("<4sI", self.take(8))
        if magic != b"GGUF":
            raise ValueError("it does not start with GGUF")
        if version not in {2, 3}:
            told = (
                "it is big-endian" if version & 0xFFFF == 0 else f"it has version {version}, but only 2 and 3 are known"
            )
            raise ValueError(told)
        num_tensors, num_keys = self.numbers("Q", 2)
        self.check_count(num_keys, 13, "keys")
        self.check_count(num_tensors, 24, "tensors")
        keys: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self.string()
            if key in keys:
                raise ValueError(f"key {key} occurs twice")
            keys[key] = self.value(self.numbers("I")[0])
        tensors: dict[str, GgufTensor] = {}
        for _ in range(num_tensors):
            tensor = self.string()
            if tensor in tensors:
                raise ValueError(f"tensor {tensor} occurs twice")
            tensors[tensor] = self.tensor()
        alignment = keys.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"its alignment is {alignment!r}, not a power of two")
        start = -(-self.file.tell() // alignment) * alignment
        return GgufHeader(path, keys, tensors, start, self.size)

    def tensor(self) -> GgufTensor:
        (num_dims,) = self.numbers("I")
        if num_dims > MAX_DIMS:
            raise ValueError(f"a tensor has {num_dims} dimensions")
        shape = self.numbers("Q", num_dims)
        (kind,), (offset,) = self.numbers("I"), self.numbers("Q")
        return GgufTensor(shape, kind, offset)

    def value(self, kind: int) -> Any:
        """Read one value; arrays of arrays are refused, as no file uses them."""
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.numbers(self.scalar(kind))[0]
        (item,), (count,) = self.numbers("I"), self.numbers("Q")
        if item == _STRING:
            self.check_count(count, 8, "elements of an array")
            return [self.string() for _ in range(count)]
        form = self.scalar(item)
        self.check_count(count, struct.calcsize(f"<{form}"), "elements of an array")
        return list(self.numbers(form, count))

    def scalar(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"a value has the unknown type {kind}")
        return _SCALARS[kind]

    def string(self) -> str:
        (length,) = self.numbers("Q")
        if length > MAX_STRING:
            raise ValueError(f"a string has {length:,} bytes")
        try:
            return self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError("a string is not UTF-8") from None

    def numbers(self, form: str, count: int = 1) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{form}", self.take(struct.calcsize(f"<{form}") * count))

    def check_count(self, count: int, least: int, what: str) -> None:
        """Raise unless `count` items of at least `least` bytes each fit into the bytes that are left."""
        if count > MAX_ITEMS or count * least > self.size - self.file.tell():
            raise ValueError(f"it claims {count:,} {what}, more than it can hold")

    def take(self, count: int) -> bytes:
        if count > self.size - self.file.tell():
            raise ValueError("it ends within its header")
        return self.file.read(count)
