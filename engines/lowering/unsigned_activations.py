"""INT8 activations about zero become UINT8 about 128: the codes ONNX Runtime's integer products read fastest."""

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import constant, tidy
from piston.graph.qdq import activation_pair

ZERO_POINT = "uint8.128"


class UnsignedActivationsPass(ir.passes.InPlacePass):
    """Every code grows by 128 and so does its zero point; scales and what the codes stand for are the same, exactly."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every pair; one QuantizeLinear may have several DequantizeLinear."""
        pairs = [pair for node in model.graph if (pair := activation_pair(node.outputs[0])) is not None]
        signed = [pair for pair in pairs if pair.zero_point.dtype == ir.DataType.INT8]
        dequantizers = {pair.dequantize for pair in signed}
        modified = False
        for quantize in dict.fromkeys(pair.quantize for pair in signed):
            codes = quantize.outputs[0]
            readers = dict.fromkeys(use.node for use in codes.uses())
            if dequantizers.issuperset(readers) and not codes.is_graph_output():
                _shift([quantize, *readers], constant(model.graph, ZERO_POINT, np.array(128, np.uint8)))
                modified = True
        if modified:
            tidy(model)
        return ir.passes.PassResult(model, modified=modified)


def _shift(nodes: list[ir.Node], zero_point: ir.Value) -> None:
    for node in nodes:
        node.replace_input_with(2, zero_point)
    nodes[0].outputs[0].dtype = ir.DataType.UINT8
