"""Blocks of quantized weights come to divide their inputs: TensorRT takes no last block that is shorter."""

import functools
import math

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import int_attribute, static_dims, tidy
from piston.graph.weight import derived_weight


class WholeBlocksPass(ir.passes.InPlacePass):
    """A scale of a block becomes the scale of several smaller blocks; every weight keeps its value."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cut every block size that does not divide."""
        ragged = [node for node in model.graph if node.op_type == "DequantizeLinear" and _is_ragged(node)]
        for node in ragged:
            codes, scales = node.inputs[:2]
            assert codes is not None
            assert scales is not None
            rows, columns = static_dims(codes)
            old = int_attribute(node, "block_size")
            new = math.gcd(rows, old)
            repeat = functools.partial(_repeated, times=old // new, count=rows // new)
            cut = derived_weight(model.graph, f"{scales.name}.cut", [scales], [rows // new, columns], repeat)
            node.replace_input_with(1, cut)
            node.attributes["block_size"] = ir.AttrInt64("block_size", new)
        if ragged:
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(ragged))


def _is_ragged(node: ir.Node) -> bool:
    block = int_attribute(node, "block_size")
    return bool(block) and bool(static_dims(node.inputs[0])[0] % block)


def _repeated(scales: np.ndarray, times: int, count: int) -> np.ndarray:
    return np.repeat(scales, times, axis=0)[:count]
