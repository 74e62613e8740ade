"""The lm_head in INT8 weights, in the canonical form: 113 MB of float32 are 4 ms a token for a 135M Llama.

It is written as explicit Q/DQ, not as a kernel's packed codes, so that the canonical graph can be given the same head
and the parity check compares like with like.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.graph.pattern import emit, is_weight, producer, replace, static_dims, tidy
from piston.graph.weight import derived_weight

LARGEST = 127
# Inputs that share a scale, and activations that are rounded together by the kernel: the smaller, the less noise. For a
# 135M Llama 32, 64 and 128 cost 0.15, 0.37 and 0.73 % of perplexity.
BLOCK = 32
WIDE = ir.DataType.FLOAT


class QuantizeHeadPass(ir.passes.InPlacePass):
    """The product that makes the logits reads INT8 codes in blocks, rounded to nearest from its float weight.

    A tied head gets codes of its own; the embedding stays as it is. A head that is quantized already stays.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Quantize the head, if it is one linear layer in float."""
        head = head_of(model.graph)
        weight = None if head is None else _weight(head)
        if head is None or weight is None:
            return ir.passes.PassResult(model, modified=False)
        value, tied = weight
        _rewrite(model.graph, head, value, tied=tied)
        tidy(model)
        return ir.passes.PassResult(model, modified=True)


def head_of(graph: ir.Graph) -> ir.Node | None:
    """The product that makes the logits, behind what scales or bounds them."""
    value: ir.Value | None = next((output for output in graph.outputs if output.name == "logits"), None)
    while value is not None and (node := value.producer()) is not None:
        if "MatMul" in node.op_type:
            return node
        value = next((item for item in node.inputs if item is not None and item.producer() is not None), None)
    return None


def _weight(head: ir.Node) -> tuple[ir.Value, bool] | None:
    """The float matrix of a MatMul, and whether it lies transposed, as a tied embedding does."""
    if head.op_type != "MatMul" or head.domain:
        return None
    transpose = producer(head.inputs[1], "Transpose")
    value = head.inputs[1] if transpose is None else transpose.inputs[0]
    return (value, transpose is not None) if value is not None and is_weight(value, 2) and value.dtype == WIDE else None


def _rewrite(graph: ir.Graph, head: ir.Node, weight: ir.Value, *, tied: bool) -> None:
    dims = static_dims(weight)
    rows, columns = dims[::-1] if tied else dims

    def oriented(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array.T if tied else array

    def make_codes(array: NDArray[np.float32]) -> NDArray[np.int8]:
        return codes_and_scales(oriented(array), BLOCK)[0]

    def make_scales(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return codes_and_scales(oriented(array), BLOCK)[1]

    codes = derived_weight(graph, "lm_head.codes", [weight], [rows, columns], make_codes, dtype=ir.DataType.INT8)
    scales = derived_weight(graph, "lm_head.scales", [weight], [-(-rows // BLOCK), columns], make_scales)
    attributes = {"axis": 0, "block_size": BLOCK}
    node = emit(head, "DequantizeLinear", [codes, scales], attributes, like=weight, dims=[rows, columns])
    product = emit(head, "MatMul", [head.inputs[0], node.outputs[0]], like=head.outputs[0])
    replace(head.outputs[0], product.outputs[0])


def codes_and_scales(weight: NDArray[np.float32], block: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round [in, out] to nearest by one scale for each `block` inputs of an output; scales are [blocks, out].

    A block of zeros has the scale 1.
    """
    codes = np.empty(weight.shape, np.int8)
    scales = np.empty((-(-len(weight) // block), weight.shape[1]), np.float32)
    for row, start in enumerate(range(0, len(weight), block)):
        part = weight[start : start + block]
        scale = np.abs(part).max(axis=0) / np.float32(LARGEST)
        scales[row] = np.where(scale == 0, 1, scale)
        codes[start : start + block] = np.rint(part / scales[row])
    return codes, scales
