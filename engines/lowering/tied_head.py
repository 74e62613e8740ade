"""A tied lm_head reads the embedding as it lies, instead of a transposed copy of it.

ONNX Runtime would fold the Transpose into a second weight of the same size. Its packed product is as fast from either
layout (1.32, 49152 x 576, one row and 512 rows: no difference), so the copy would buy nothing.
"""

import onnx_ir as ir

from piston.graph.pattern import MICROSOFT, emit, is_weight, producer, replace, tidy


class TiedHeadPass(ir.passes.InPlacePass):
    """MatMul(x, Transpose(weight)) becomes FusedMatMul(x, weight, transB=1), the same products."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every product with a transposed weight."""
        modified = False
        for matmul in [node for node in model.graph if node.op_type == "MatMul" and node.domain == ""]:
            transpose = producer(matmul.inputs[1], "Transpose")
            if transpose is None or not is_weight(transpose.inputs[0], 2) or not _is_swap(transpose):
                continue
            inputs = [matmul.inputs[0], transpose.inputs[0]]
            fused = emit(matmul, "FusedMatMul", inputs, {"transB": 1}, domain=MICROSOFT, like=matmul.outputs[0])
            replace(matmul.outputs[0], fused.outputs[0])
            modified = True
        if modified:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
        return ir.passes.PassResult(model, modified=modified)


def _is_swap(transpose: ir.Node) -> bool:
    return "perm" not in transpose.attributes or list(transpose.attributes["perm"].as_ints()) == [1, 0]
