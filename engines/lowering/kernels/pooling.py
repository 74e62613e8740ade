"""Sums over the tokens of a text become one of Piston's own kernels, of the same bits alone and in a padded batch."""

import onnx_ir as ir

from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import constants, dims_of, emit, int_attribute, producer, replace, sole_consumer, static_dims

LANES, RANK = 16, 3


class KernelSumTokensPass(KernelPass):
    """ReduceSum over tokens of values [batch, seq, width] times weights [batch, seq, 1] becomes SumTokens."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _factors(node) is not None

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        factors = _factors(node)
        assert factors is not None
        result = node.outputs[0]
        made = emit(node, "SumTokens", factors, domain=KERNELS, like=result, dims=dims_of(result))
        replace(result, made.outputs[0])


def _factors(node: ir.Node) -> tuple[ir.Value, ir.Value] | None:
    """Values and weights, if the node sums their product over axis 1."""
    is_sum = (node.domain, node.op_type) == ("", "ReduceSum") and int_attribute(node, "keepdims", 1) == 0
    if not is_sum or len(node.inputs) != 2 or constants(node.inputs[1]) not in ([1], [-2]):  # noqa: PLR2004
        return None
    product = producer(node.inputs[0], "Mul")
    if product is None or sole_consumer(product.outputs[0]) is None:
        return None
    values, weights = sorted(product.inputs, key=lambda value: static_dims(value)[-1:], reverse=True)
    if values is None or weights is None or values.dtype != ir.DataType.FLOAT:
        return None
    dims = static_dims(values)
    fits = len(dims) == RANK and dims[2] > 0 and dims[2] % LANES == 0 and static_dims(weights)[2:] == [1]
    return (values, weights) if fits else None
