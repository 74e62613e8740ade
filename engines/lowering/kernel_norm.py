"""A residual sum, its norm and the norm's codes become one node of Piston's own kernels."""

import onnx_ir as ir

from piston.engines.lowering.kernel_linear import KERNELS, codes_reader
from piston.engines.lowering.pattern import (
    MICROSOFT,
    dims_of,
    emit,
    float_attribute,
    replace,
    same_shape,
    static_dims,
    tidy,
)

LANES = 16


class KernelNormPass(ir.passes.InPlacePass):
    """SkipSimplifiedLayerNormalization -> QuantizeLinear becomes NormCodes, with both results."""

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every norm whose codes are all that is read."""
        for norm in list(model.graph):
            quantize = codes_reader(norm.outputs[0]) if _fits(norm) else None
            if quantize is not None:
                _rewrite(norm, quantize)
                self.fused += 1
        tidy(model)
        model.opset_imports[KERNELS] = 1
        return ir.passes.PassResult(model, modified=bool(self.fused))


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
