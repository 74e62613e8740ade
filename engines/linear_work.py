"""In which arithmetic an engine's linear layers really run: counted in the graph that ONNX Runtime saved."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from piston.core.errors import ShortfallError
from piston.engines.lowering.quantize_head import head_of
from piston.graph.pattern import int_attribute, producer, static_dims
from piston.graph.qdq import is_remainder, quantized_weight

# Operator -> which of its inputs is the matrix. All multiply INT8 by INT8 and add up in INT32.
INTEGER = {"MatMulIntegerToFloat": 1, "DynamicQuantizeMatMul": 1, "MatMulInteger": 1, "QLinearMatMul": 3}
FLOAT = {"MatMul": 1, "FusedMatMul": 1, "Gemm": 1}
RANK = 2
NAMED = 3  # layers in float that a message names
ARITHMETIC = ("int8", "weights8", "weights4", "float")


@dataclass(frozen=True, slots=True)
class LinearWork:
    """Multiply-adds of one token, by arithmetic: int8, weights8 or weights4 where weights alone are, float."""

    layers: dict[str, int]  # without lm_head
    head: dict[str, int]
    in_float: list[str]  # the layers in float, by module
    unfused: dict[str, str] = field(default_factory=dict)  # what stayed Q/DQ -> why

    def share(self, arithmetic: str) -> float:
        """The part of the layers' multiply-adds in one arithmetic; of no layers, 0."""
        return self.layers.get(arithmetic, 0) / max(sum(self.layers.values()), 1)


def linear_work(graph: ir.Graph) -> LinearWork:
    """Count the products by constant matrices."""
    found = [product for node in graph if (product := product_of(node)) is not None]
    return counted(found, head_of(graph), dict(_unfused(graph)))


@dataclass(frozen=True, slots=True)
class Product:
    """A product by a constant matrix: its arithmetic, and multiply-adds of one token."""

    node: ir.Node
    matrix: ir.Value
    arithmetic: str
    amount: int


def counted(products: Iterable[Product], logits: ir.Node | None, unfused: dict[str, str] | None = None) -> LinearWork:
    """Multiply-adds by arithmetic, each matrix once, in the widest that it is multiplied in.

    A remainder's product is of the same layer, and if it is not in integers, neither is the layer.
    """
    widest: dict[ir.Value, Product] = {}
    for product in products:
        known = widest.get(product.matrix)
        if known is None or ARITHMETIC.index(product.arithmetic) > ARITHMETIC.index(known.arithmetic):
            widest[product.matrix] = product
    layers: dict[str, int] = {}
    head: dict[str, int] = {}
    in_float = []
    for product in widest.values():
        node, is_head = product.node, product.node is logits
        amounts = head if is_head else layers
        amounts[product.arithmetic] = amounts.get(product.arithmetic, 0) + product.amount
        if product.arithmetic == "float" and not is_head:
            in_float.append((node.name or "").rpartition("/")[0] or node.outputs[0].name or "")
    return LinearWork(layers, head, in_float, unfused or {})


def product_of(node: ir.Node) -> Product | None:
    """The product by a constant matrix that a node of ONNX Runtime's graphs is, if it is one."""
    if node.op_type == "MatMulNBits":
        packed, bits = node.inputs[1], int_attribute(node, "bits", 4)
        assert packed is not None
        return Product(node, packed, f"weights{bits}", int_attribute(node, "K") * int_attribute(node, "N"))
    index = INTEGER.get(node.op_type, FLOAT.get(node.op_type))
    matrix = None if index is None else _constant_behind(node.inputs[index])
    if matrix is None or len(static_dims(matrix)) != RANK:
        return None
    rows, columns = static_dims(matrix)
    return Product(node, matrix, "int8" if node.op_type in INTEGER else "float", rows * columns)


def _constant_behind(value: ir.Value | None) -> ir.Value | None:
    """The initializer that `value` is, or is dequantized or transposed from."""
    while value is not None and not value.is_initializer():
        node = producer(value, "DequantizeLinear", "Transpose")
        value = None if node is None else node.inputs[0]
    return value


def _unfused(graph: ir.Graph) -> Iterator[tuple[str, str]]:
    """Every DequantizeLinear that is left, by the name of what it makes, and what kept it."""
    for node in graph:
        if node.op_type != "DequantizeLinear" or node.domain:
            continue
        result = node.outputs[0]
        readers = [use.node for use in result.uses() if not is_remainder(use.node)]
        if not readers and result.uses():
            continue
        if (codes := node.inputs[0]) is not None and codes.is_initializer():
            yield result.name or "", f"a weight that is dequantized at every step: {_why_weight(result)}"
        else:
            yield result.name or "", "; ".join(dict.fromkeys(_why_activation(reader) for reader in readers))


def _why_weight(result: ir.Value) -> str:
    readers = [use.node for use in result.uses()]
    if quantized_weight(result) is None:
        return "its codes are not symmetric INT8 or INT4 with scales for each output, or each block of inputs"
    others = [reader.op_type for reader in readers if reader.op_type != "MatMul"]
    return f"read by {others[0]}, not by MatMul" if others else "its blocks are of a size MatMulNBits does not have"


def _why_activation(reader: ir.Node) -> str:
    name = reader.name or reader.op_type
    if reader.op_type == "MatMulNBits":
        return f"{name} has weights in blocks, which no integer product reads"
    if reader.op_type not in FLOAT:
        return f"{name} is no linear layer"
    weight = reader.inputs[FLOAT[reader.op_type]]
    if producer(weight, "DequantizeLinear") is None:
        return f"{name} has a float weight"
    return f"{name} or the pair is not symmetric with one scale for each output"


def check_int8(work: LinearWork, required: float) -> None:
    """Raise ShortfallError if fewer multiply-adds than `required` run in INT8; lm_head does not count."""
    share = work.share("int8")
    if share >= required:
        return
    weights = work.share("weights8") + work.share("weights4")
    reasons = [f"{weights:.2%} have weights alone in INT8 or INT4"] if weights > 0 else []
    if work.in_float:
        more = len(work.in_float) - NAMED
        reasons.append(f"in float are {', '.join(work.in_float[:NAMED])}" + (f" and {more} more" if more > 0 else ""))
    raise ShortfallError(
        f"{share:.2%} of the linear multiply-adds run in INT8, {required:.2%} were required; {'; '.join(reasons)}. "
        "Nothing was written."
    )
