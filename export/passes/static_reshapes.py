"""Reshape to Concat(batch, seq, constants) becomes Reshape to a constant [0, 0, ...]: fewer nodes, plain patterns."""

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from piston.graph.pattern import initializer


class StaticReshapesPass(ir.passes.InPlacePass):
    """Applies where the leading dynamic dimensions are kept and all others are known. Values are unchanged."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Give every such Reshape a constant shape."""
        modified = False
        constants: dict[tuple[int, ...], ir.Value] = {}
        for node in list(model.graph):
            if node.op_type != "Reshape" or (shape := _static_shape(node)) is None:
                continue
            if shape not in constants:
                name = "shape." + "_".join(map(str, shape))
                constants[shape] = initializer(model.graph, name, np.array(shape, np.int64))
            node.replace_input_with(1, constants[shape])
            node.attributes.pop("allowzero", None)  # zero now means: as in the input
            modified = True
        if modified:
            common.RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=modified)


def _static_shape(node: ir.Node) -> tuple[int, ...] | None:
    source, target = node.inputs[0], node.outputs[0]
    if source is None or source.shape is None or target.shape is None:
        return None
    shape: list[int] = []
    for axis, size in enumerate(target.shape):
        if isinstance(size, int):
            shape.append(size)
        elif axis < len(source.shape) and source.shape[axis] == size and len(shape) == axis:
            shape.append(0)
        else:
            return None
    return None if 0 not in shape else tuple(shape)
