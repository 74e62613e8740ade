"""Attention of an encoder becomes that of Piston's own kernels, which reads heads where the linears left them."""

import onnx_ir as ir

from piston.engines.lowering.kernels.addends import codes_reader
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import (
    constants,
    dims_of,
    emit,
    float_attribute,
    int_attribute,
    producer,
    replace,
    sole_consumer,
    static_dims,
)

HEAD_STEP = 32  # head_dim must be a multiple
HEADS_FIRST = [0, 2, 1, 3]  # [batch, seq, heads, head_dim] to [batch, heads, seq, head_dim], and back
BIAS, LENGTHS = 3, 6  # inputs of Attention
RANK = 4


class KernelBidirectionalPass(KernelPass):
    """Attention over `lengths`, with the Reshapes and Transposes around it, becomes BidirectionalAttention(Codes).

    What stays: causal masks, soft caps, heads that share keys, a head_dim that is no multiple of 32.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        if (node.domain, node.op_type) != ("", "Attention") or len(node.inputs) <= LENGTHS:
            return False
        bias, lengths = node.inputs[BIAS], node.inputs[LENGTHS]
        is_plain = (
            int_attribute(node, "is_causal", 0) == 0
            and not float_attribute(node, "softcap", 0.0)
            and "scale" in node.attributes
            and lengths is not None
            and all(value is None for value in node.inputs[4:LENGTHS])
            and not any(output.uses() for output in node.outputs[1:])
        )
        heads = [_linear_of(value) for value in node.inputs[:BIAS]]
        dims = static_dims(node.inputs[0])
        return (
            is_plain
            and None not in heads
            and len({tuple(static_dims(value)) for value in heads}) == 1
            and len(dims) == RANK
            and dims[1] > 0
            and dims[3] > 0
            and dims[3] % HEAD_STEP == 0
            and (bias is None or (bias.dtype == ir.DataType.FLOAT and len(static_dims(bias)) == RANK))
            and _merged(node) is not None
        )

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        merged = _merged(node)
        assert merged is not None
        quantize = codes_reader(merged)
        result = merged if quantize is None else quantize.outputs[0]
        heads = [_linear_of(value) for value in node.inputs[:BIAS]]
        scale = None if quantize is None else quantize.inputs[1]
        inputs = [*heads, node.inputs[LENGTHS], scale, node.inputs[BIAS]]
        while inputs[-1] is None:
            inputs.pop()
        made = emit(
            node,
            "BidirectionalAttention" + ("" if quantize is None else "Codes"),
            inputs,
            {"num_heads": static_dims(node.inputs[0])[1], "scale": float_attribute(node, "scale")},
            domain=KERNELS,
            like=result,
            dims=dims_of(merged),
        )
        replace(result, made.outputs[0])


def _linear_of(value: ir.Value | None) -> ir.Value | None:
    """[batch, seq, width], of which `value` is the heads, [batch, heads, seq, head_dim]."""
    transpose = producer(value, "Transpose")
    if transpose is None or not _swaps_heads(transpose):
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    dims = static_dims(value)
    if source is None or len(dims) != RANK or len(static_dims(source)) != RANK - 1:
        return None
    keeps = (constants(reshape.inputs[1]) or [])[:2] == [0, 0]  # type: ignore[union-attr]
    return source if keeps and static_dims(source)[2] == dims[1] * dims[3] else None


def _swaps_heads(transpose: ir.Node) -> bool:
    return "perm" in transpose.attributes and list(transpose.attributes["perm"].as_ints()) == HEADS_FIRST


def _merged(attention: ir.Node) -> ir.Value | None:
    """The result as [batch, seq, width], if it is read in this form alone."""
    transpose = sole_consumer(attention.outputs[0])
    if transpose is None or transpose.op_type != "Transpose" or not _swaps_heads(transpose):
        return None
    reshape = sole_consumer(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    dims = static_dims(attention.inputs[0])
    keeps = (constants(reshape.inputs[1]) or [])[:2] == [0, 0]
    merged = reshape.outputs[0]
    return merged if keeps and static_dims(merged)[2:] == [dims[1] * dims[3]] else None
