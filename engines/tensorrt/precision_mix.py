"""In which arithmetic a lowered file asks for its linear layers: counted in the graph that the compiler got.

Networks are strongly typed, so the compiler multiplies in these types; which kernels it chose is seen on the GPU alone.
"""

import onnx_ir as ir

from piston.engines.linear_work import LinearWork, Product, counted
from piston.engines.lowering.quantize_head import head_of
from piston.graph.pattern import producer, static_dims
from piston.graph.qdq import BITS

RANK = 2


def precision_mix(graph: ir.Graph) -> LinearWork:
    """Multiply-adds of one token by arithmetic: int8, weights8, weights4, float."""
    found = [product for node in graph if (product := product_of(node)) is not None]
    return counted(found, head_of(graph))


def product_of(node: ir.Node) -> Product | None:
    """The product by a constant matrix that a node of a canonical graph, or of one for TensorRT, is, if it is one."""
    weight = _behind(node.inputs[1], "Cast", "Transpose") if node.op_type == "MatMul" else None
    dequantize = producer(weight, "DequantizeLinear")
    matrix = weight if dequantize is None else dequantize.inputs[0]
    if matrix is None or not matrix.is_initializer() or len(static_dims(matrix)) != RANK:
        return None
    arithmetic = "float"
    if dequantize is not None and matrix.dtype is not None:
        activation = producer(_behind(node.inputs[0], "Cast"), "DequantizeLinear")
        arithmetic = "int8" if activation is not None else f"weights{BITS[matrix.dtype]}"
    rows, columns = static_dims(matrix)
    return Product(node, matrix, arithmetic, rows * columns)


def _behind(value: ir.Value | None, *op_types: str) -> ir.Value | None:
    """The value that passed through these operators on its way."""
    while (node := producer(value, *op_types)) is not None:
        value = node.inputs[0]
    return value
