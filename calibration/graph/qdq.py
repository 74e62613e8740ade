"""Explicit Q/DQ: codes and scales beside the weights, one QuantizeLinear/DequantizeLinear pair on each activation.

Weights: DequantizeLinear(codes, scales) with axis 1 and one scale a channel, or axis 0 and block_size. Activations:
one static per-tensor scale, symmetric INT8, one pair shared by all quantized readers (design: the same graph serves
ONNX Runtime and TensorRT, whose rules facts.md section 2 lists).
"""

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from piston.calibration.numeric.rounding import Quantized

CODE_TYPES = {8: np.dtype(np.int8), 4: np.dtype(ml_dtypes.int4)}


class QuantizeWeightsPass(ir.passes.InPlacePass):
    """Replaces each named float initializer [K, N] by codes, scales and a DequantizeLinear; readers are unchanged."""

    def __init__(self, weights: Mapping[str, Quantized]) -> None:
        super().__init__()
        self.weights = weights

    def requires(self, model: ir.Model) -> None:
        """Every named weight is there, with one shape."""
        for name, quantized in self.weights.items():
            value = model.graph.initializers.get(name)
            if value is None or value.shape is None or tuple(value.shape) != quantized.codes.shape:
                raise ir.passes.PreconditionError(f"The graph has no weight {name} of shape {quantized.codes.shape}.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the dequantizers."""
        for name, quantized in self.weights.items():
            dequantize_weight(model.graph, name, quantized)
        return ir.passes.PassResult(model, modified=bool(self.weights))


class QuantizeActivationsPass(ir.passes.InPlacePass):
    """Puts one Q/DQ pair behind each named value, read by the given nodes; all other readers keep the float value."""

    def __init__(self, scales: Mapping[str, float], readers: Mapping[str, Iterable[str]]) -> None:
        super().__init__()
        self.scales = scales
        self.readers = {name: frozenset(nodes) for name, nodes in readers.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs; raises KeyError for a value the graph does not have."""
        values = {output.name: output for node in model.graph for output in node.outputs}
        for name, scale in self.scales.items():
            quantize_activation(model.graph, values[name], scale, self.readers[name])
        return ir.passes.PassResult(model, modified=bool(self.scales))


def dequantize_weight(graph: ir.Graph, name: str, quantized: Quantized) -> None:
    """Replace the named initializer by codes [K, N], scales and a DequantizeLinear; its readers are unchanged."""
    weight = graph.initializers[name]
    grid = quantized.grid
    codes = initializer(graph, f"{name}.codes", quantized.codes.astype(CODE_TYPES[grid.bits]))
    scales = quantized.scales if grid.block else quantized.scales[0]
    inputs = [codes, initializer(graph, f"{name}.scales", scales.astype(np.float32))]
    attributes = {"axis": 0, "block_size": grid.block} if grid.block else {"axis": 1}
    node = ir.node("DequantizeLinear", inputs, attributes, name=f"{name}/DequantizeLinear")
    output = node.outputs[0]
    output.name, output.type = f"{name}.dequantized", ir.TensorType(ir.DataType.FLOAT)
    output.shape = ir.Shape(quantized.codes.shape)
    graph.insert_before(graph[0], node)
    weight.replace_all_uses_with(output)
    del graph.initializers[name]


def quantize_activation(
    graph: ir.Graph, value: ir.Value, scale: float, readers: frozenset[str] = frozenset()
) -> ir.Value:
    """Put a Q/DQ pair behind the value, which these nodes then read; returns what they read."""
    name = value.name
    uses = [(user, index) for user, index in value.uses() if user.name in readers]
    inputs = [
        initializer(graph, f"{name}.scale", np.array(scale, np.float32)),
        initializer(graph, f"{name}.zero_point", np.array(0, np.int8)),
    ]
    quantize = ir.node("QuantizeLinear", [value, *inputs], name=f"{name}/QuantizeLinear")
    dequantize = ir.node("DequantizeLinear", [quantize.outputs[0], *inputs], name=f"{name}/DequantizeLinear")
    for node, suffix, dtype in ((quantize, "codes", ir.DataType.INT8), (dequantize, "dequantized", ir.DataType.FLOAT)):
        node.outputs[0].name, node.outputs[0].shape = f"{name}.{suffix}", value.shape
        node.outputs[0].type = ir.TensorType(dtype)
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, [quantize, dequantize])
    for user, index in uses:
        user.replace_input_with(index, dequantize.outputs[0])
    return dequantize.outputs[0]


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A constant of the graph."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
