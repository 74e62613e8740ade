"""Linear layers in the one form of the canonical graph: MatMul by a constant [in, out], then Add of the bias."""

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import array_of, emit, float_attribute, initializer, int_attribute, is_weight, replace, tidy

RANK = 2


class LinearFormPass(ir.passes.InPlacePass):
    """Gemm(x, constant, bias), and MatMul by a constant that a Transpose turns, become MatMul [+ Add]: the same sums.

    Models of transformers are traced in this form (piston.export.layers); modules of users are not touched before.
    """

    def __init__(self) -> None:
        super().__init__()
        self._turned: dict[ir.Value, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such node."""
        modified = False
        for node in list(model.graph):
            if node.domain == "" and node.op_type == "Gemm" and _is_linear(node):
                self._rewrite(model.graph, node)
                modified = True
            elif node.domain == "" and node.op_type == "MatMul" and (weight := _transposed(node)) is not None:
                node.replace_input_with(1, self._turn(model.graph, weight))
                modified = True
        if modified:
            tidy(model)
        for weight, turned in self._turned.items():
            if weight.name not in model.graph.initializers:
                turned.name = weight.name
        return ir.passes.PassResult(model, modified=modified)

    def _rewrite(self, graph: ir.Graph, gemm: ir.Node) -> None:
        source, weight, bias = [*gemm.inputs, None][:3]
        assert weight is not None
        matrix = self._turn(graph, weight) if int_attribute(gemm, "transB") else weight
        last = emit(gemm, "MatMul", [source, matrix], like=gemm.outputs[0])
        if bias is not None:
            last = emit(gemm, "Add", [last.outputs[0], bias], like=gemm.outputs[0])
        replace(gemm.outputs[0], last.outputs[0])

    def _turn(self, graph: ir.Graph, weight: ir.Value) -> ir.Value:
        """The transposed weight as an initializer, made once."""
        if weight not in self._turned:
            array = np.ascontiguousarray(array_of(weight).T)
            self._turned[weight] = initializer(graph, f"{weight.name}.transposed", array)
        return self._turned[weight]


def _is_linear(gemm: ir.Node) -> bool:
    """Whether it is x W + b."""
    scaled = float_attribute(gemm, "alpha", 1.0) != 1.0 or float_attribute(gemm, "beta", 1.0) != 1.0
    return not scaled and not int_attribute(gemm, "transA") and is_weight(gemm.inputs[1], RANK)


def _transposed(matmul: ir.Node) -> ir.Value | None:
    """The constant matrix that a MatMul reads turned."""
    value = matmul.inputs[1]
    node = None if value is None else value.producer()
    if node is None or node.domain or node.op_type != "Transpose" or not is_weight(node.inputs[0], RANK):
        return None
    return node.inputs[0]
