"""Explicit Q/DQ, recognised and written: weights that are codes and scales, activations that pass through codes.

Symmetric grids only, as the canonical graph has them; what is of another form is not recognised, and stays.

Weights: DequantizeLinear(codes, scales) with axis 1 and one scale a channel, or axis 0 and block_size. Activations: one
static per-tensor scale, one pair shared by all quantized readers. Keys and values: a pair before the TensorScatter;
per channel, which QuantizeLinear has for one axis only, a pair of scale 1 between a Div and a Mul by the scales.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import array_of, constants, initializer, int_attribute, is_weight, producer, static_dims

BITS = {ir.DataType.INT8: 8, ir.DataType.INT4: 4}
MIDDLE = {ir.DataType.INT8: 0.0, ir.DataType.UINT8: 128.0}  # the zero points of a symmetric grid
RANK = 2  # [in, out]


@dataclass(frozen=True, slots=True)
class QuantizedWeight:
    """A DequantizeLinear of constants: codes [in, out], scales [out], or [blocks, out] if `block` is not 0."""

    node: ir.Node
    codes: ir.Value
    scales: ir.Value
    bits: int
    block: int

    @property
    def form(self) -> tuple[int, int]:
        """What two weights must share to become one."""
        return self.bits, self.block


@dataclass(frozen=True, slots=True)
class ActivationPair:
    """QuantizeLinear -> DequantizeLinear by one scale: `codes` are between, `source` before."""

    quantize: ir.Node
    dequantize: ir.Node

    @property
    def source(self) -> ir.Value:
        """The float activation."""
        assert self.quantize.inputs[0] is not None
        return self.quantize.inputs[0]

    @property
    def scale(self) -> ir.Value:
        """A scalar."""
        assert self.quantize.inputs[1] is not None
        return self.quantize.inputs[1]

    @property
    def zero_point(self) -> ir.Value:
        """A scalar, in the type of the codes."""
        assert self.quantize.inputs[2] is not None
        return self.quantize.inputs[2]

    @property
    def codes(self) -> ir.Value:
        """INT8 about 0, or UINT8 about 128."""
        return self.quantize.outputs[0]


@dataclass(frozen=True, slots=True)
class Remainder:
    """Of a value that is rounded twice: the name of its first codes, and what one of them is worth."""

    codes: str
    step: float


@dataclass(frozen=True, slots=True)
class CacheRounding:
    """New keys or values pass through INT8 codes: by one scale, or by [1, kv_heads, 1, head_dim] of them."""

    source: ir.Value
    scale: ir.Value

    @property
    def is_per_channel(self) -> bool:
        """Whether each channel of each head has its scale."""
        return bool(static_dims(self.scale))


def quantized_weight(value: ir.Value | None) -> QuantizedWeight | None:
    """The codes and scales that `value` [in, out] is made of, if the kernels can read them."""
    node = producer(value, "DequantizeLinear")
    if node is None:
        return None
    codes, scales, zero_point = [*node.inputs, None][:3]
    if codes is None or scales is None or not is_weight(codes, RANK) or codes.dtype not in BITS:
        return None
    if zero_point is not None and (not zero_point.is_initializer() or np.any(array_of(zero_point))):
        return None
    rows, columns = static_dims(codes)
    block, axis = int_attribute(node, "block_size"), int_attribute(node, "axis", 1)
    if block == 0:
        fits = axis in (1, -1) and is_weight(scales, 1) and static_dims(scales) == [columns]
    else:
        blocks = -(-rows // block)
        fits = axis in (0, -RANK) and is_weight(scales, RANK) and static_dims(scales) == [blocks, columns]
    return QuantizedWeight(node, codes, scales, BITS[codes.dtype], block) if fits else None


def activation_pair(value: ir.Value | None) -> ActivationPair | None:
    """The pair whose result is `value`, if both nodes have one scalar scale and the middle as zero point."""
    dequantize = producer(value, "DequantizeLinear")
    quantize = None if dequantize is None else producer(dequantize.inputs[0], "QuantizeLinear")
    if dequantize is None or quantize is None or len(quantize.inputs) != 3 or len(dequantize.inputs) != 3:  # noqa: PLR2004
        return None
    scale, zero_point = quantize.inputs[1:]
    if scale is None or zero_point is None or zero_point.dtype not in MIDDLE:
        return None
    if not _same_constants(scale, dequantize.inputs[1]) or not _same_constants(zero_point, dequantize.inputs[2]):
        return None
    middle = MIDDLE[zero_point.dtype]
    return ActivationPair(quantize, dequantize) if constants(zero_point) == [middle] and _is_scalar(scale) else None


def dequantized_size(graph: ir.Graph) -> int:
    """Bytes of float32 that all quantized weights take when they are dequantized."""
    weights = [quantized_weight(node.outputs[0]) for node in graph if node.op_type == "DequantizeLinear"]
    return sum(4 * int(weight.codes.const_value.size) for weight in weights if weight and weight.codes.const_value)


def quantizers(graph: ir.Graph) -> dict[str, ir.Node]:
    """Every QuantizeLinear, in the order of the graph, by the name of its codes."""
    found = (node for node in graph if node.op_type == "QuantizeLinear" and node.domain == "")
    return {str(node.outputs[0].name): node for node in found}


def is_remainder(node: ir.Node) -> bool:
    """Whether it subtracts from a value what its codes stand for, to give codes to what is left."""
    if node.op_type != "Sub" or node.domain:
        return False
    pair = activation_pair(node.inputs[1])
    readers = [
        use.node.op_type for use in node.outputs[0].uses() if use.node.op_type != "Identity"
    ]  # a parity's copies
    return pair is not None and pair.source is node.inputs[0] and readers == ["QuantizeLinear"]


def remainders(graph: ir.Graph) -> dict[str, Remainder]:
    """What is rounded twice, by the names of the second codes."""
    found = {}
    for node in [node for node in graph if is_remainder(node)]:
        pair = activation_pair(node.inputs[1])
        coarse = next(use.node for use in node.outputs[0].uses() if use.node.op_type == "QuantizeLinear")
        assert pair is not None
        found[str(coarse.outputs[0].name)] = Remainder(str(pair.codes.name), (constants(pair.scale) or [0.0])[0])
    return found


def cache_rounding(value: ir.Value | None) -> CacheRounding | None:
    """How `value` [batch, kv_heads, seq, head_dim] was rounded to INT8, if it was."""
    scaled = producer(value, "Mul")
    pair = activation_pair(value if scaled is None else scaled.inputs[0])
    if pair is None or pair.zero_point.dtype != ir.DataType.INT8:
        return None
    if scaled is None:
        return CacheRounding(pair.source, pair.scale)
    divided, scales = producer(pair.source, "Div"), scaled.inputs[1]
    if divided is None or divided.inputs[0] is None or scales is None or divided.inputs[1] is not scales:
        return None
    heads, head_dim = static_dims(value)[1::2]
    fits = is_weight(scales, 4) and static_dims(scales) == [1, heads, 1, head_dim] and constants(pair.scale) == [1]
    return CacheRounding(divided.inputs[0], scales) if fits else None


def dequantize_weight(
    graph: ir.Graph, name: str, codes: np.ndarray, scales: np.ndarray, block: int = 0, axis: int = 1
) -> None:
    """Replace an initializer by codes and a DequantizeLinear; its readers are unchanged.

    Args:
        graph: has the initializer.
        name: of it.
        codes: [in, out], int8 or int4; of a convolution [out, in, ...].
        scales: [out], or [blocks, out] if there are blocks.
        block: inputs of each, or 0.
        axis: of the outputs.
    """
    weight = graph.initializers[name]
    inputs = [
        initializer(graph, f"{name}.codes", codes),
        initializer(graph, f"{name}.scales", scales.astype(np.float32)),
    ]
    attributes = {"axis": 0, "block_size": block} if block else {"axis": axis}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    output = node.outputs[0]
    output.name, output.type = f"{name}.dequantized", ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(codes.shape)
    graph.insert_before(graph[0], node)
    weight.replace_all_uses_with(output)
    del graph.initializers[name]


def quantize_activation(
    graph: ir.Graph, value: ir.Value, scale: float, readers: frozenset[str] = frozenset(), suffix: str = ""
) -> ir.Value:
    """Put a Q/DQ pair behind the value, which these nodes then read; returns what they read.

    `suffix` is for the names of a second pair of the same value.
    """
    name = f"{value.name}{suffix}"
    uses = [(user, index) for user, index in value.uses() if user.name in readers]
    inputs = [
        initializer(graph, f"{name}.scale", np.array(scale, np.float32)),
        initializer(graph, f"{name}.zero_point", np.array(0, np.int8)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{name}/QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{name}/DequantizeLinear")
    for node, ending, dtype in ((quantize, "codes", ir.DataType.INT8), (dequantize, "dequantized", ir.DataType.FLOAT)):
        node.outputs[0].name, node.outputs[0].shape = f"{name}.{ending}", value.shape
        node.outputs[0].type = ir.TensorType(dtype)
    maker = value.producer()
    if maker is None:  # an input of the graph
        graph.insert_before(graph[0], [quantize, dequantize])
    else:
        graph.insert_after(maker, [quantize, dequantize])
    for user, index in uses:
        user.replace_input_with(index, dequantize.outputs[0])
    return dequantize.outputs[0]


def round_cache(graph: ir.Graph, scatter: ir.Node, scales: np.ndarray) -> None:
    """Round what a TensorScatter writes; `scales` is a scalar or [1, kv_heads, 1, head_dim]."""
    name, new = f"{scatter.outputs[0].name}", scatter.inputs[1]
    assert new is not None
    scale = initializer(graph, f"{name}.scale", scales)
    zero = initializer(graph, f"{name}.zero_point", np.array(0, np.int8))
    one = initializer(graph, f"{name}.one", np.array(1, np.float32)) if scales.ndim else scale
    steps = [("QuantizeLinear", [one, zero]), ("DequantizeLinear", [one, zero])]
    if scales.ndim:
        steps = [("Div", [scale]), *steps, ("Mul", [scale])]
    value, nodes = new, list[ir.Node]()
    for op_type, others in steps:
        nodes.append(ir.node(op_type, [value, *others], name=f"{name}/{op_type}"))
        value = nodes[-1].outputs[0]
        dtype = ir.DataType.INT8 if op_type == "QuantizeLinear" else ir.DataType.FLOAT
        value.name, value.shape, value.type = f"{name}.{op_type}", new.shape, ir.TensorType(dtype)
    graph.insert_before(scatter, nodes)
    scatter.replace_input_with(1, value)


def _same_constants(one: ir.Value, other: ir.Value | None) -> bool:
    return one is other or (other is not None and one.dtype == other.dtype and constants(one) == constants(other))


def _is_scalar(value: ir.Value) -> bool:
    return static_dims(value) == [] and len(constants(value) or []) == 1
