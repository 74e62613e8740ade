"""What goes with a product of codes: inputs left in float, the codes of a remainder; how a gated layer gives both."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import (
    constant,
    constants,
    graph_of,
    int_attribute,
    is_weight,
    producer,
    same_shape,
    sole_consumer,
    static_dims,
)
from piston.graph.qdq import activation_pair, is_remainder

ZERO_POINT = 128
MOST_OUTLIERS = 256  # more inputs in float are a linear layer of their own, for a kernel that multiplies by blocks
WEIGHT, SCALE, WEIGHT_SCALES, ZERO_POINTS = 1, 2, 3, 4  # inputs of MatMulIntegerToFloat


@dataclass(frozen=True, slots=True)
class Addends:
    """What is added to a product of codes."""

    total: ir.Node  # whose output is the whole linear layer: the product itself, where nothing is added
    outliers: tuple[ir.Value, ir.Value] | None = None  # values [.., k] and their weights [k, out]
    remainder: ir.Node | None = None  # the product of the coarser codes


@dataclass(frozen=True, slots=True)
class Codes:
    """All that reads a value: its codes, the channels that are read in float too, the codes of what is left over."""

    quantize: ir.Node
    gather: ir.Node | None = None
    coarse: ir.Node | None = None


def beside(product: ir.Node) -> Addends:
    """What is added to a MatMulIntegerToFloat by another product of the same input."""
    found = Addends(product)
    while (total := sole_consumer(found.total.outputs[0])) is not None and total.op_type == "Add" and not total.domain:
        other = total.inputs[1] if total.inputs[0] is found.total.outputs[0] else total.inputs[0]
        if other is None or sole_consumer(other) is None or not same_shape(other, product.outputs[0]):
            break
        if found.outliers is None and (outliers := _outliers(other)) is not None:
            found = Addends(total, outliers, found.remainder)
        elif found.remainder is None and (remainder := _remainder(other, product)) is not None:
            found = Addends(total, found.outliers, remainder)
        else:
            break
    return found


def is_beside(product: ir.Node) -> bool:
    """Whether it is the remainder of another product by the same weight, which takes it along."""
    weight = product.inputs[WEIGHT]
    assert weight is not None
    others = [use.node for use in weight.uses() if use.node is not product and use.node.op_type == product.op_type]
    return any(beside(other).remainder is product for other in others)


def ratio_of(remainder: ir.Node, product: ir.Node) -> ir.Value:
    """The coarse scale by the fine one, as a constant."""
    coarse = remainder.inputs[SCALE]
    assert coarse is not None
    array = np.array(_scale(remainder) / _scale(product), np.float32)
    return constant(graph_of(product), f"{coarse.name}.ratio", array)


def codes_of(value: ir.Value) -> Codes | None:
    """How the value is made codes of, to UINT8 about 128, if nothing else reads it but by ascending channels."""
    nodes = [use.node for use in value.uses()]
    quantize = next((node for node in nodes if is_middle(node)), None)
    if quantize is None or value.is_graph_output():
        return None
    gather = next((node for node in nodes if _picks(node, value)), None)
    coarse = next((rest for node in nodes if (rest := _coarse(node, quantize)) is not None), None)
    found = Codes(quantize, gather, coarse)
    return found if len(nodes) == 1 + (gather is not None) + (coarse is not None) else None


def codes_reader(value: ir.Value) -> ir.Node | None:
    """The QuantizeLinear to UINT8 about 128, by one scale, that is all that reads `value`."""
    node = sole_consumer(value)
    return node if node is not None and is_middle(node) else None


def is_middle(node: ir.Node) -> bool:
    """Whether it is a QuantizeLinear to UINT8 about 128, by one scale."""
    if node.op_type != "QuantizeLinear" or node.domain or len(node.inputs) != 3:  # noqa: PLR2004
        return False
    zero_point = node.inputs[2]
    is_uint8 = zero_point is not None and zero_point.dtype == ir.DataType.UINT8
    return is_uint8 and constants(zero_point) == [ZERO_POINT] and static_dims(node.inputs[1]) == []


def _outliers(other: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    matmul = producer(other, "MatMul")
    if matmul is None or not is_weight(matmul.inputs[1], 2):
        return None
    values, weight = matmul.inputs
    assert values is not None
    assert weight is not None
    is_small = static_dims(weight)[0] <= MOST_OUTLIERS
    return (values, weight) if weight.dtype == ir.DataType.FLOAT and is_small else None


def _remainder(other: ir.Value, product: ir.Node) -> ir.Node | None:
    """The product of coarser codes by the same weight, which is all that is added: its own bias would be lost."""
    node = other.producer()
    if node is None or (node.domain, node.op_type) != (product.domain, product.op_type):
        return None
    same = all(node.inputs[index] is product.inputs[index] for index in (WEIGHT, WEIGHT_SCALES, ZERO_POINTS))
    is_plain = all(value is None for value in node.inputs[5:])
    return node if same and is_plain and _scale(node) > _scale(product) else None


def _scale(product: ir.Node) -> float:
    return (constants(product.inputs[SCALE]) or [0.0])[0]


def _picks(node: ir.Node, value: ir.Value) -> bool:
    """Whether it gathers channels in ascending order."""
    if node.op_type != "Gather" or node.domain or node.inputs[0] is not value:
        return False
    channels, rank = node.inputs[1], len(static_dims(value))
    is_last = int_attribute(node, "axis") in (-1, rank - 1)
    if not is_last or not is_weight(channels, 1) or channels is None or channels.dtype != ir.DataType.INT64:
        return False
    places = constants(channels) or []
    return places == sorted(set(places)) and min(places, default=-1) >= 0


def _coarse(node: ir.Node, quantize: ir.Node) -> ir.Node | None:
    """The QuantizeLinear of what the codes of `quantize` leave over, if `node` subtracts them."""
    if not is_remainder(node):
        return None
    pair, reader = activation_pair(node.inputs[1]), sole_consumer(node.outputs[0])
    is_theirs = pair is not None and pair.quantize is quantize and reader is not None and is_middle(reader)
    return reader if is_theirs else None
