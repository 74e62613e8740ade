"""Attention of an encoder becomes that of Piston's own kernels, which reads heads where the linears left them."""

import onnx_ir as ir

from piston.engines.lowering.kernels.addends import codes_reader
from piston.engines.lowering.kernels.heads import HEAD_STEP, RANK, linear_of, merged, unscaled
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import dims_of, emit, float_attribute, int_attribute, replace, static_dims

BIAS, LENGTHS = 3, 6  # inputs of Attention


class KernelBidirectionalPass(KernelPass):
    """Attention over `lengths`, or all, with the Reshapes and Transposes around it: BidirectionalAttention(Codes).

    What stays: causal masks, soft caps, heads that share keys, a head_dim that is no multiple of 32.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        if not is_plain(node):
            return False
        heads = [linear_of(value) for value in node.inputs[:BIAS]]
        dims, bias = static_dims(node.inputs[0]), input_of(node, BIAS)
        return (
            None not in heads
            and len({tuple(static_dims(value)) for value in heads}) == 1
            and len(dims) == RANK
            and dims[1] > 0
            and dims[3] > 0
            and dims[3] % HEAD_STEP == 0
            and (bias is None or (bias.dtype == ir.DataType.FLOAT and len(static_dims(bias)) == RANK))
            and merged(node) is not None
        )

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        query, key, value = (linear_of(value) for value in node.inputs[:BIAS])
        assert query is not None
        query, factor = unscaled(query)
        given = [query, key, value, input_of(node, LENGTHS)]
        emit_merged(node, "BidirectionalAttention", given, factor, [input_of(node, BIAS)])


def is_plain(node: ir.Node) -> bool:
    """Whether it is an Attention without causal mask, soft cap and past, of which only the result is read."""
    return (
        (node.domain, node.op_type) == ("", "Attention")
        and int_attribute(node, "is_causal", 0) == 0
        and not float_attribute(node, "softcap", 0.0)
        and "scale" in node.attributes
        and all(value is None for value in node.inputs[BIAS + 1 : LENGTHS])
        and not any(output.uses() for output in node.outputs[1:])
    )


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input, None where it was left out."""
    return node.inputs[index] if len(node.inputs) > index else None


def emit_merged(
    node: ir.Node, kind: str, inputs: list[ir.Value | None], factor: float, rest: list[ir.Value | None]
) -> None:
    """Put the operator `kind` in the place of an Attention and what merges its heads, or `kind`Codes with that.

    Args:
        node: the Attention.
        kind: the operator.
        inputs: its inputs, before the scale of codes.
        factor: of the queries, beside the scale of `node`.
        rest: inputs behind the scale of codes.
    """
    whole = merged(node)
    assert whole is not None
    quantize = codes_reader(whole)
    result = whole if quantize is None else quantize.outputs[0]
    inputs = [*inputs, None if quantize is None else quantize.inputs[1], *rest]
    while inputs[-1] is None:
        inputs.pop()
    made = emit(
        node,
        kind + ("" if quantize is None else "Codes"),
        inputs,
        {"num_heads": static_dims(node.inputs[0])[1], "scale": factor * float_attribute(node, "scale")},
        domain=KERNELS,
        like=result,
        dims=dims_of(whole),
    )
    replace(result, made.outputs[0])
