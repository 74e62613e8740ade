"""Writes one ONNX graph byte by byte: measuring INT8 products needs a graph, and the runtime has no onnx package.

Field numbers are those of onnx.proto3 (ONNX 1.x, IR version 8); the wire format is Protocol Buffers'.
"""

import numpy as np
from numpy.typing import NDArray

_UINT8, _INT8, _INT32 = 2, 3, 6  # TensorProto.DataType
_OPSET, _IR_VERSION = 13, 8


def matmul_integer(weight: NDArray[np.int8]) -> bytes:
    """A model with input `a` uint8 [m, k], an initializer int8 [k, n], and output `y` int32 [m, n]."""
    num_in, num_out = weight.shape
    node = _text(1, "a") + _text(1, "b") + _text(2, "y") + _text(4, "MatMulInteger")
    initializer = _number(1, num_in) + _number(1, num_out) + _number(2, _INT8) + _text(8, "b")
    graph = (
        _field(1, node)
        + _text(2, "product")
        + _field(5, initializer + _field(9, np.ascontiguousarray(weight).tobytes()))
        + _field(11, _value("a", _UINT8, num_in))
        + _field(12, _value("y", _INT32, num_out))
    )
    return _number(1, _IR_VERSION) + _field(7, graph) + _field(8, _number(2, _OPSET))


def _value(name: str, element: int, columns: int) -> bytes:
    """ValueInfoProto of shape [m, columns]."""
    shape = _field(1, _text(2, "m")) + _field(1, _number(1, columns))
    return _text(1, name) + _field(2, _field(1, _number(1, element) + _field(2, shape)))


def _text(field: int, text: str) -> bytes:
    return _field(field, text.encode())


def _field(field: int, payload: bytes) -> bytes:
    """Length-delimited."""
    return _varint(field << 3 | 2) + _varint(len(payload)) + payload


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:  # noqa: PLR2004 - seven bits a byte
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])
