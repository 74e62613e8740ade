"""Linear layers whose two sides are codes become integer products.

ONNX Runtime would fuse most of them itself, and leave those that miss its pattern to run many times slower without a
word (facts 6.4); a node that is written down cannot miss. It takes the bias too, which its own fusion does not.
"""

import onnx_ir as ir

from piston.engines.lowering.linear import Linear, linear_of
from piston.graph.pattern import MICROSOFT, emit, replace, tidy
from piston.graph.qdq import ActivationPair, activation_pair

WEIGHT_BITS = 8


class IntegerMatMulPass(ir.passes.InPlacePass):
    """MatMul(UINT8 pair, INT8 weight per channel) (+ Add) becomes com.microsoft.MatMulIntegerToFloat on the codes.

    Sums are exact in INT32 where the pair and float products round them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every linear layer that fits."""
        for matmul in [node for node in model.graph if node.op_type == "MatMul"]:
            linear, pair = linear_of(matmul), activation_pair(matmul.inputs[0])
            if linear is None or pair is None or pair.zero_point.dtype != ir.DataType.UINT8 or not _fits(linear):
                continue
            _rewrite(linear, pair)
            self.fused += 1
        if self.fused:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.fused))


def _fits(linear: Linear) -> bool:
    return linear.quantized is not None and linear.quantized.form == (WEIGHT_BITS, 0)


def _rewrite(linear: Linear, pair: ActivationPair) -> None:
    codes, scales = linear.constants
    inputs: list[ir.Value | None] = [pair.codes, codes, pair.scale, scales, pair.zero_point]
    if linear.bias is not None:
        inputs += [None, linear.bias]
    fused = emit(linear.matmul, "MatMulIntegerToFloat", inputs, domain=MICROSOFT, like=linear.output)
    replace(linear.output, fused.outputs[0])
