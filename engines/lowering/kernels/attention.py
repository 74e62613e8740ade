"""GroupQueryAttention becomes the attention of Piston's own kernels, and gives codes where those are what is read."""

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.kernels.addends import codes_reader
from piston.engines.lowering.kernels.heads import HEAD_STEP, unscaled
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import (
    MICROSOFT,
    dims_of,
    emit,
    float_attribute,
    graph_of,
    int_attribute,
    replace,
    static_dims,
)
from piston.graph.weight import derived_weight

HEADS, PAST, LENGTHS, ROTARY, SCALES = slice(0, 3), slice(3, 5), 5, slice(7, 9), slice(12, 14)
CODE_SCALE = 8  # where the kernel has it
DEFAULTS = {"local_window_size": -1, "rotary_interleaved": 0, "smooth_softmax": -1, "causal": 1, "qk_output": 0}


class KernelAttentionPass(KernelPass):
    """GroupQueryAttention (-> QuantizeLinear) becomes Attention(Int8)(Codes), the same values.

    Query, key and value may be packed or apart, rotated or not. Windows, soft-capping, sinks and interleaved rotation
    stay with ONNX Runtime's kernel.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _fits(node)

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        _rewrite(node)


def _fits(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != (MICROSOFT, "GroupQueryAttention"):
        return False
    inputs = [*node.inputs, *[None] * 14][:14]
    plain = all(int_attribute(node, name, value) == value for name, value in DEFAULTS.items())
    extras = [*inputs[9:12]] + ([] if inputs[12] is not None else inputs[13:14])
    heads = inputs[0] is not None and (inputs[1] is None) == (inputs[2] is None)
    is_rotated, tables = int_attribute(node, "do_rotary") == 1, inputs[ROTARY]
    dims = static_dims(inputs[3])
    return (
        heads
        and plain
        and is_rotated == all(table is not None for table in tables)
        and not any(value is not None for value in extras)
        and not float_attribute(node, "softcap")
        and len(dims) == 4  # noqa: PLR2004
        and dims[3] % HEAD_STEP == 0
        and (not is_rotated or static_dims(inputs[7])[-1:] == [dims[3] // 2])
        and "scale" in node.attributes
    )


def _rewrite(node: ir.Node) -> None:
    query, key, value, lengths = *node.inputs[HEADS], node.inputs[LENGTHS]
    past, rotary = node.inputs[PAST], [*node.inputs, None, None][ROTARY]
    assert query is not None
    assert past[0] is not None
    query, factor = (query, 1.0) if key is None else unscaled(query)  # packed, it would be one of values, too
    kind = "Attention"
    inputs: list[ir.Value | None] = [query, *past, lengths, *rotary]
    if past[0].dtype == ir.DataType.INT8:
        kind += "Int8"
        inputs += [_by_channel(node, value, static_dims(past[0])) for value in node.inputs[SCALES]]
    quantize = codes_reader(node.outputs[0])
    result = node.outputs[0]
    dims = dims_of(result)
    inputs += [None] * (CODE_SCALE - len(inputs))
    if quantize is not None:
        kind += "Codes"
        result = quantize.outputs[0]
    inputs.append(None if quantize is None else quantize.inputs[1])
    inputs += [key, value]
    while inputs[-1] is None:
        inputs.pop()
    attributes: dict[str, int | float] = {
        "num_heads": int_attribute(node, "num_heads"),
        "scale": factor * float_attribute(node, "scale"),
    }
    made = emit(node, kind, inputs, attributes, domain=KERNELS, num_outputs=3, like=result, dims=dims)
    for present, old in zip(made.outputs[1:], node.outputs[1:], strict=True):
        present.type = old.type or past[0].type
        replace(old, present)
    replace(result, made.outputs[0])


def _by_channel(node: ir.Node, scale: ir.Value | None, dims: list[int]) -> ir.Value:
    """A cache's scale, of one element or [1, kv_heads, 1, head_dim], laid out for each channel of each head."""
    assert scale is not None
    heads, head_dim = dims[1], dims[3]

    def channels(array: np.ndarray) -> np.ndarray:
        whole = np.broadcast_to(
            array.reshape(-1) if array.size == 1 else array.reshape(heads, head_dim), (heads, head_dim)
        )
        return np.ascontiguousarray(whole)

    return derived_weight(graph_of(node), f"{scale.name}.channels", [scale], [heads, head_dim], channels)
