"""Explicit Q/DQ as passes: the form is piston.graph.qdq's; the same graph serves ONNX Runtime and TensorRT."""

from collections.abc import Iterable, Mapping

import ml_dtypes
import numpy as np
import onnx_ir as ir

from piston.graph.qdq import dequantize_weight, quantize_activation
from piston.graph.rounding import Quantized

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
            write_weight(model.graph, name, quantized)
        return ir.passes.PassResult(model, modified=bool(self.weights))


class QuantizeActivationsPass(ir.passes.InPlacePass):
    """Puts one Q/DQ pair behind each named value, read by the given nodes; all other readers keep the float value."""

    def __init__(self, scales: Mapping[str, float], readers: Mapping[str, Iterable[str]]) -> None:
        super().__init__()
        self.scales = scales
        self.readers = {name: frozenset(nodes) for name, nodes in readers.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs; raises KeyError for a value the graph does not have."""
        values = {value.name: value for value in model.graph.inputs}
        values |= {output.name: output for node in model.graph for output in node.outputs}
        for name, scale in self.scales.items():
            quantize_activation(model.graph, values[name], scale, self.readers[name])
        return ir.passes.PassResult(model, modified=bool(self.scales))


def write_weight(graph: ir.Graph, name: str, quantized: Quantized) -> None:
    """Replace the named initializer by codes [K, N], scales and a DequantizeLinear; its readers are unchanged."""
    grid = quantized.grid
    scales = quantized.scales if grid.block else quantized.scales[0]
    dequantize_weight(graph, name, quantized.codes.astype(CODE_TYPES[grid.bits]), scales, grid.block)
