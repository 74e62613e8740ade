"""A residual sum, its norm and the norm's codes become one node of Piston's own kernels."""

import onnx_ir as ir

from piston.engines.lowering.kernels.addends import codes_reader
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import (
    MICROSOFT,
    dims_of,
    emit,
    float_attribute,
    replace,
    same_shape,
    static_dims,
)

LANES = 16


class KernelNormPass(KernelPass):
    """SkipSimplifiedLayerNormalization -> QuantizeLinear becomes NormCodes, with both results."""

    def fits(self, node: ir.Node) -> bool:
        """Whether its codes are all that is read."""
        return _fits(node) and codes_reader(node.outputs[0]) is not None

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        quantize = codes_reader(node.outputs[0])
        assert quantize is not None
        _rewrite(node, quantize)


def _fits(norm: ir.Node) -> bool:
    if (norm.domain, norm.op_type) != (MICROSOFT, "SkipSimplifiedLayerNormalization") or len(norm.inputs) != 3:  # noqa: PLR2004
        return False
    if len(norm.outputs) < 4 or any(output.uses() for output in norm.outputs[1:3]):  # noqa: PLR2004
        return False
    width = static_dims(norm.inputs[0])[-1:]
    return same_shape(norm.inputs[0], norm.inputs[1]) and bool(width) and width[0] > 0 and width[0] % LANES == 0


def _rewrite(norm: ir.Node, quantize: ir.Node) -> None:
    fused = emit(
        norm,
        "NormCodes",
        [*norm.inputs, quantize.inputs[1]],
        {"epsilon": float_attribute(norm, "epsilon", 1e-5)},
        domain=KERNELS,
        num_outputs=2,
        like=quantize.outputs[0],
        dims=dims_of(norm.inputs[0]),
    )
    fused.outputs[1].type, fused.outputs[1].shape = norm.inputs[0].type, norm.inputs[0].shape  # type: ignore[union-attr]
    replace(norm.outputs[3], fused.outputs[1])
    replace(quantize.outputs[0], fused.outputs[0])
