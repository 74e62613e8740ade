"""The engine's file and its float32 reference are one graph: node by node, casts and types aside."""

from pathlib import Path

import numpy as np
import onnx_ir as ir

from piston.core.errors import ParityError

SMALL = 4096  # elements: constants up to this size are compared one by one, larger ones by a sample
STRIDE = 997
# Relative to the largest: one rounding to 8 bits of mantissa.
ROUNDING = 2.0**-8


def check_same(float32: Path, lowered: Path) -> None:
    """Raise ParityError, with the node, where `lowered` differs from `float32` in more than casts and types."""
    ours, theirs = ([node for node in ir.load(path).graph if node.op_type != "Cast"] for path in (lowered, float32))
    if len(ours) != len(theirs):
        raise ParityError(
            f"The file for TensorRT has {len(ours)} nodes besides casts, its float32 reference {len(theirs)}."
        )
    for one, other in zip(ours, theirs, strict=True):
        difference = _difference(one, other)
        if difference:
            raise ParityError(
                f"{one.name} ({one.op_type}) of the file for TensorRT differs from its float32 reference in "
                f"{difference}. Nothing was written."
            )


def _difference(one: ir.Node, other: ir.Node) -> str:
    if (one.domain, one.op_type, one.name) != (other.domain, other.op_type, other.name):
        return "its operator"
    if _attributes(one) != _attributes(other):
        return "its attributes"
    if len(one.inputs) != len(other.inputs):
        return "its inputs"
    for index, (mine, its) in enumerate(zip(one.inputs, other.inputs, strict=True)):
        if not _same_input(_uncast(mine), _uncast(its)):
            return f"its input {index}"
    return ""


def _attributes(node: ir.Node) -> dict[str, object]:
    """Tensors as their elements, whatever their type."""
    return {
        name: item.as_tensor().numpy().tolist() if item.type == ir.AttributeType.TENSOR else item.value
        for name, item in node.attributes.items()
    }


def _uncast(value: ir.Value | None) -> ir.Value | None:
    while value is not None and (node := value.producer()) is not None and node.op_type == "Cast" and _is_float(value):
        value = node.inputs[0]
    return value


def _is_float(value: ir.Value) -> bool:
    return value.dtype in {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16}


def _same_input(mine: ir.Value | None, its: ir.Value | None) -> bool:
    if mine is None or its is None:
        return mine is its
    if mine.is_initializer() and its.is_initializer():
        return _same_constant(mine, its)
    one, other = mine.producer(), its.producer()
    if one is None or other is None:
        return one is other and mine.name == its.name
    return one.name == other.name and mine.index() == its.index()


def _same_constant(mine: ir.Value, its: ir.Value) -> bool:
    if mine.const_value is None or its.const_value is None:
        return False
    one, other = mine.const_value.numpy(), its.const_value.numpy()
    if one.shape != other.shape:
        return False
    step = 1 if one.size <= SMALL else STRIDE
    left, right = (array.reshape(-1)[::step].astype(np.float64) for array in (one, other))
    return bool(np.all(np.abs(left - right) <= ROUNDING * np.abs(right) + 1e-7))
