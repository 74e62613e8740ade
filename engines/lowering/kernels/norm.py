"""A residual sum, its norm and the norm's codes become one node of Piston's own kernels."""

import onnx_ir as ir

from piston.engines.lowering.kernels.addends import codes_reader, is_middle
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import (
    MICROSOFT,
    dims_of,
    emit,
    float_attribute,
    int_attribute,
    replace,
    same_shape,
    static_dims,
)

LANES = 16
LAYER_NORM_SCALE = 4  # where LayerNormCodes has the scale of its codes


class KernelNormPass(KernelPass):
    """SkipSimplifiedLayerNormalization becomes Norm, or NormCodes where codes are all that is read of it."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _norm_fits(node)

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        quantize = codes_reader(node.outputs[0])
        result = node.outputs[0] if quantize is None else quantize.outputs[0]
        made = emit(
            node,
            "Norm" if quantize is None else "NormCodes",
            [*node.inputs, *([] if quantize is None else quantize.inputs[1:2])],
            {"epsilon": float_attribute(node, "epsilon", 1e-5)},
            domain=KERNELS,
            num_outputs=2,
            like=result,
            dims=dims_of(node.inputs[0]),
        )
        made.outputs[1].type, made.outputs[1].shape = node.inputs[0].type, node.inputs[0].shape  # type: ignore[union-attr]
        for old, new in zip((result, node.outputs[3]), made.outputs, strict=True):
            replace(old, new)


class KernelLayerNormPass(KernelPass):
    """(Skip)LayerNormalization becomes LayerNorm, or LayerNormCodes where codes are made of it."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _layer_norm_fits(node)

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        quantize, normed = _codes_of(node.outputs[0]), node.outputs[0]
        is_skip = node.op_type == "SkipLayerNormalization"
        given = [*node.inputs[:1], *([] if is_skip else [None]), *node.inputs[1:], *[None] * LAYER_NORM_SCALE]
        inputs = [*given[:LAYER_NORM_SCALE], None if quantize is None else quantize.inputs[1], given[LAYER_NORM_SCALE]]
        while inputs[-1] is None:
            inputs.pop()
        made = emit(
            node,
            "LayerNorm" if quantize is None else "LayerNormCodes",
            inputs,
            {"epsilon": float_attribute(node, "epsilon", 1e-5)},
            domain=KERNELS,
            num_outputs=2 if quantize is None else 3,
            like=normed if quantize is None else quantize.outputs[0],
            dims=dims_of(node.inputs[0]),
        )
        sums = node.outputs[3] if len(node.outputs) > 3 else None  # noqa: PLR2004
        if quantize is not None:
            replace(quantize.outputs[0], made.outputs[0])
        for old, new in zip((normed, sums), made.outputs[-2:], strict=True):
            new.type, new.shape = node.inputs[0].type, node.inputs[0].shape  # type: ignore[union-attr]
            if old is not None and (old.uses() or old.is_graph_output()):
                replace(old, new)
            else:
                new.name = ""


def _layer_norm_fits(norm: ir.Node) -> bool:
    """Whether it is over the last axis, in float, of a whole number of vectors, and gives no statistics."""
    is_skip = (norm.domain, norm.op_type) == (MICROSOFT, "SkipLayerNormalization")
    is_plain = (norm.domain, norm.op_type) == ("", "LayerNormalization")
    width = static_dims(norm.inputs[0])[-1:] if is_skip or is_plain else []
    if not width or width[0] <= 0 or width[0] % LANES or any(output.uses() for output in norm.outputs[1:3]):
        return False
    value = norm.inputs[0]
    assert value is not None
    if value.dtype != ir.DataType.FLOAT:
        return False
    if is_skip:
        return same_shape(value, norm.inputs[1])
    rank = len(static_dims(value))
    return int_attribute(norm, "axis", -1) in (-1, rank - 1) and len(norm.inputs) < LAYER_NORM_SCALE


def _codes_of(value: ir.Value) -> ir.Node | None:
    """The one QuantizeLinear to UINT8 about 128 among what reads a value that is no output of the graph."""
    found = [use.node for use in value.uses() if is_middle(use.node) and use.idx == 0]
    return found[0] if len(found) == 1 and not value.is_graph_output() else None


def _norm_fits(norm: ir.Node) -> bool:
    if (norm.domain, norm.op_type) != (MICROSOFT, "SkipSimplifiedLayerNormalization") or len(norm.inputs) != 3:  # noqa: PLR2004
        return False
    if len(norm.outputs) < 4 or any(output.uses() for output in norm.outputs[1:3]):  # noqa: PLR2004
        return False
    width = static_dims(norm.inputs[0])[-1:]
    return same_shape(norm.inputs[0], norm.inputs[1]) and bool(width) and width[0] > 0 and width[0] % LANES == 0
