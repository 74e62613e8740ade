"""A residual sum and the norm that reads it become one node with both results."""

import onnx_ir as ir

from piston.graph.pattern import (
    MICROSOFT,
    emit,
    float_attribute,
    int_attribute,
    producer,
    replace,
    same_shape,
    static_dims,
    tidy,
)

RANK = 3  # the kernels take [batch, seq, hidden]
FUSED = {"RMSNormalization": "SkipSimplifiedLayerNormalization", "LayerNormalization": "SkipLayerNormalization"}


class SkipNormPass(ir.passes.InPlacePass):
    """Add -> RMSNormalization | LayerNormalization over the last axis becomes Skip(Simplified)LayerNormalization.

    The sum, which the next residual reads, becomes its fourth output. A sum that two norms read is fused with one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every pair that fits."""
        for norm in [node for node in model.graph if node.op_type in FUSED and node.domain == ""]:
            if (add := _residual(norm)) is not None:
                _fuse(add, norm)
                self.fused += 1
        if self.fused:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.fused))


def _residual(norm: ir.Node) -> ir.Node | None:
    add = producer(norm.inputs[0], "Add")
    if add is None or len(norm.outputs) != 1 or int_attribute(norm, "axis", -1) not in (-1, RANK - 1):
        return None
    left, right = add.inputs
    if not same_shape(left, right) or len(static_dims(left)) != RANK:
        return None
    return add if all(len(static_dims(weight)) == 1 for weight in norm.inputs[1:]) else None


def _fuse(add: ir.Node, norm: ir.Node) -> None:
    epsilon = float_attribute(norm, "epsilon", 1e-5)
    fused = emit(
        add,
        FUSED[norm.op_type],
        [*add.inputs, *norm.inputs[1:]],
        {"epsilon": epsilon},
        domain=MICROSOFT,
        num_outputs=4,
        like=norm.outputs[0],
    )
    normed, mean, deviation, total = fused.outputs
    mean.name = deviation.name = ""  # training only
    replace(norm.outputs[0], normed)
    replace(add.outputs[0], total)
