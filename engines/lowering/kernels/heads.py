"""How heads are cut out of what linears give, and put together again, around an Attention."""

import onnx_ir as ir

from piston.graph.pattern import constants, producer, sole_consumer, static_dims

HEAD_STEP = 32  # head_dim must be a multiple
HEADS_FIRST = [0, 2, 1, 3]  # [batch, seq, heads, head_dim] to [batch, heads, seq, head_dim], and back
RANK = 4


def linear_of(value: ir.Value | None) -> ir.Value | None:
    """[batch, seq, width], of which `value` is the heads, [batch, heads, seq, head_dim]."""
    transpose = producer(value, "Transpose")
    if transpose is None or not _swaps_heads(transpose):
        return None
    reshape = producer(transpose.inputs[0], "Reshape")
    source = None if reshape is None else reshape.inputs[0]
    dims = static_dims(value)
    if source is None or len(dims) != RANK or len(static_dims(source)) != RANK - 1:
        return None
    return source if _keeps(reshape) and static_dims(source)[2] == dims[1] * dims[3] else None


def merged(attention: ir.Node) -> ir.Value | None:
    """The result as [batch, seq, width], if it is read in this form alone."""
    transpose = sole_consumer(attention.outputs[0])
    if transpose is None or transpose.op_type != "Transpose" or not _swaps_heads(transpose):
        return None
    reshape = sole_consumer(transpose.outputs[0])
    if reshape is None or reshape.op_type != "Reshape":
        return None
    dims = static_dims(attention.inputs[0])
    whole = reshape.outputs[0]
    return whole if _keeps(reshape) and static_dims(whole)[2:] == [dims[1] * dims[3]] else None


def unscaled(query: ir.Value) -> tuple[ir.Value, float]:
    """What is multiplied by a number to become `query`, and the number, if nothing else reads it; else itself and 1."""
    mul = producer(query, "Mul")
    if mul is None or sole_consumer(query) is None:
        return query, 1.0
    for value, factor in (mul.inputs, mul.inputs[::-1]):
        number = constants(factor) if static_dims(factor) in ([], [1]) else None
        if value is not None and number is not None and len(number) == 1:
            return value, number[0]
    return query, 1.0


def _keeps(reshape: ir.Node | None) -> bool:
    """Whether the first two axes stay as they are: batch and positions."""
    if reshape is None:
        return False
    sizes, dims = (constants(reshape.inputs[1]) or [])[:2], static_dims(reshape.inputs[0])
    return len(sizes) == 2 and all(size in {0, dim} for size, dim in zip(sizes, dims, strict=False))  # noqa: PLR2004


def _swaps_heads(transpose: ir.Node) -> bool:
    return "perm" in transpose.attributes and list(transpose.attributes["perm"].as_ints()) == HEADS_FIRST
