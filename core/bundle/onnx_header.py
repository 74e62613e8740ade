"""The header of an ONNX file, read without the onnx package: opsets, inputs, outputs, operators, weights.

A protobuf is a list of (field number, wire type, value); weights are skipped, not read. Every length is compared with
the bytes that are left, so a damaged file gives an error. Field numbers are those of onnx.proto (onnx 1.22).
"""

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from piston.core.errors import BundleCorruptError

Field = tuple[int, int | memoryview]
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
# TensorProto.DataType: name and bits of one value.
TYPES = {
    1: ("float32", 32), 2: ("uint8", 8), 3: ("int8", 8), 4: ("uint16", 16), 5: ("int16", 16), 6: ("int32", 32),
    7: ("int64", 64), 8: ("string", 0), 9: ("bool", 8), 10: ("float16", 16), 11: ("float64", 64), 12: ("uint32", 32),
    13: ("uint64", 64), 16: ("bfloat16", 16), 17: ("float8e4m3fn", 8), 19: ("float8e5m2", 8), 21: ("uint4", 4),
    22: ("int4", 4), 23: ("float4e2m1", 4),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output; a dimension is a number, a name, or "?"."""

    name: str
    type: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxHeader:
    """The facts of one file; `weights` are bytes by type, wherever they are stored."""

    ir_version: int
    producer: str
    opsets: Mapping[str, int]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: Mapping[str, int]
    weights: Mapping[str, int]
    num_weights: int
    external_files: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> "OnnxHeader":
        """Read a file of any size; its external data is not opened.

        Raises:
            BundleCorruptError: it cannot be read, or is not an ONNX model.
        """
        try:
            with path.open("rb") as file:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)  # unmapped when its last reference is gone
        except (OSError, ValueError) as problem:  # mmap refuses an empty file with ValueError
            raise BundleCorruptError(f"{path} cannot be read ({problem}); make it again.") from None
        return cls.parse(memoryview(data), str(path))

    @classmethod
    def parse(cls, data: memoryview, source: str = "the file") -> "OnnxHeader":
        """Read the bytes of a model; raises BundleCorruptError."""
        try:
            model = _Model()
            for number, value in _fields(data):
                model.take(number, value)
        except _WireError as problem:
            raise BundleCorruptError(f"{source} is not an ONNX model ({problem}); make it again.") from None
        if not model.has_graph or not model.opsets:
            raise BundleCorruptError(f"{source} is not an ONNX model (it has no graph or no opset); make it again.")
        return model.header()


class _WireError(Exception):
    """What is wrong with the bytes."""


class _Model:
    """A header while it is being read."""

    def __init__(self) -> None:
        self.ir_version, self.producer, self.has_graph = 0, "", False
        self.opsets: dict[str, int] = {}
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.operators: Counter[str] = Counter()
        self.weights: Counter[str] = Counter()
        self.num_weights = 0
        self.files: set[str] = set()

    def header(self) -> OnnxHeader:
        """The finished header; graph inputs that are weights (IR 3) do not count as inputs."""
        return OnnxHeader(
            ir_version=self.ir_version,
            producer=self.producer,
            opsets=dict(self.opsets),
            inputs=tuple(self.inputs),
            outputs=tuple(self.outputs),
            operators=dict(sorted(self.operators.items(), key=lambda item: (-item[1], item[0]))),
            weights=dict(self.weights),
            num_weights=self.num_weights,
            external_files=tuple(sorted(self.files)),
        )

    def take(self, number: int, value: int | memoryview) -> None:
        """A field of ModelProto."""
        if number == 1:
            self.ir_version = _number(value)
        elif number == 2:  # noqa: PLR2004 - field numbers of onnx.proto, here and below
            self.producer = _text(value)
        elif number == 7:  # noqa: PLR2004
            self.has_graph = True
            for inner, item in _fields(_bytes(value)):
                self._take_of_graph(inner, item)
        elif number == 8:  # noqa: PLR2004
            fields = _last(value)
            self.opsets[_text(fields.get(1, memoryview(b"")))] = _number(fields.get(2, 0))

    def _take_of_graph(self, number: int, value: int | memoryview) -> None:
        if number == 1:
            fields = _last(value)
            domain, name = _text(fields.get(7, memoryview(b""))), _text(fields.get(4, memoryview(b"")))
            self.operators[f"{domain}::{name}" if domain else name] += 1
        elif number == 5:  # noqa: PLR2004
            self._take_weight(_bytes(value))
        elif number in (11, 12):
            (self.inputs if number == 11 else self.outputs).append(_tensor_info(value))  # noqa: PLR2004

    def _take_weight(self, value: memoryview) -> None:
        dims: list[int] = []
        kind = 0
        for number, item in _fields(value):
            if number == 1:
                dims += [item] if isinstance(item, int) else _varints(item)
            elif number == 2:  # noqa: PLR2004
                kind = _number(item)
            elif number == 13:  # noqa: PLR2004
                entry = _last(item)
                if _text(entry.get(1, memoryview(b""))) == "location":
                    self.files.add(_text(entry.get(2, memoryview(b""))))
        name, bits = TYPES.get(kind, (f"type {kind}", 0))
        if any(dim >= 1 << 63 for dim in dims):
            raise _WireError("a weight has a negative dimension")
        self.weights[name] += (math.prod(dims) * bits + 7) // 8
        self.num_weights += 1


def _fields(data: memoryview) -> Iterator[Field]:
    """The fields of a message in order."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise _WireError("a field has number 0")
        if wire == VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        size = {FIXED64: 8, FIXED32: 4}.get(wire)
        if wire == BYTES:
            size, at = _varint(data, at)
        if size is None:
            raise _WireError(f"wire type {wire}")
        if size > len(data) - at:
            raise _WireError(f"a field of {size} bytes where {len(data) - at} are left")
        yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for place in range(10):
        if at + place >= len(data):
            raise _WireError("it ends inside a number")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:  # noqa: PLR2004 - the bit that says another byte follows
            return value, at + place + 1
    raise _WireError("a number has more than ten bytes")


def _varints(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _tensor_info(value: int | memoryview) -> TensorInfo:
    fields = _last(value)
    tensor = _last(_last(fields.get(2, memoryview(b""))).get(1, memoryview(b"")))
    kind = TYPES.get(_number(tensor.get(1, 0)), ("unknown", 0))[0]
    shape = [_dimension(dim) for number, dim in _fields(_bytes(tensor.get(2, memoryview(b"")))) if number == 1]
    return TensorInfo(_text(fields.get(1, memoryview(b""))), kind, tuple(shape))


def _dimension(value: int | memoryview) -> int | str:
    fields = _last(value)
    return _number(fields[1]) if 1 in fields else _text(fields.get(2, memoryview(b"?")))


def _last(value: int | memoryview) -> dict[int, int | memoryview]:
    """A message's fields, each at most once."""
    return dict(_fields(_bytes(value)))


def _bytes(value: int | memoryview) -> memoryview:
    if isinstance(value, int):
        raise _WireError("a number where a message belongs")
    return value


def _text(value: int | memoryview) -> str:
    return bytes(_bytes(value)).decode("utf-8", errors="replace")


def _number(value: int | memoryview) -> int:
    if not isinstance(value, int):
        raise _WireError("bytes where a number belongs")
    return value
