"""From [batch, heads, seq, head_dim], which Attention reads, to [batch, seq, heads * head_dim], which linears write.

Linears write the second form and the canonical graph transposes it into the first; walking back over that transpose,
and over what commutes with it, finds the original instead of transposing twice.
"""

import onnx_ir as ir

from piston.graph.pattern import (
    constant_ints,
    dims_of,
    emit,
    graph_of,
    int_attribute,
    producer,
    static_dims,
)

RANK = 4
LAST = (-1, RANK - 1)


def merged_heads(value: ir.Value, before: ir.Node) -> ir.Value:
    """The elements of `value` [batch, heads, seq, head_dim] as [batch, seq, heads * head_dim].

    Nodes that have to be added are put in front of `before`; none are changed or removed.
    """
    _, heads, _, head_dim = static_dims(value)
    if (transpose := producer(value, "Transpose")) is not None and is_head_swap(transpose):
        return _flattened(_input(transpose), before)
    if (norm := _norm_of_heads(value)) is not None:
        split = _reshaped(merged_heads(_input(norm), before), (0, 0, heads, head_dim), before)
        again = emit(before, norm.op_type, [split, *norm.inputs[1:]], like=split)
        again.attributes.update(norm.attributes)
        return _flattened(again.outputs[0], before)
    rotary = producer(value, "RotaryEmbedding")
    if rotary is not None and len(static_dims(_input(rotary))) == RANK:
        whole = merged_heads(_input(rotary), before)
        again = emit(before, "RotaryEmbedding", [whole, *rotary.inputs[1:]], {"num_heads": heads}, like=whole)
        again.attributes.update(rotary.attributes)
        return again.outputs[0]
    batch, _, seq, _ = dims_of(value)
    if heads == 1:
        return _squeezed(value, (batch, seq, head_dim), before)
    dims = (batch, seq, heads, head_dim)
    transposed = emit(before, "Transpose", [value], {"perm": (0, 2, 1, 3)}, like=value, dims=dims)
    return _flattened(transposed.outputs[0], before)


def is_head_swap(node: ir.Node) -> bool:
    """Whether a Transpose exchanges the axes of heads and positions, and nothing else."""
    return list(node.attributes["perm"].as_ints()) == [0, 2, 1, 3] if "perm" in node.attributes else False


def _norm_of_heads(value: ir.Value) -> ir.Node | None:
    """The norm over head_dim that makes `value`: it may be taken on either side of the transpose."""
    norm = producer(value, "RMSNormalization", "LayerNormalization")
    if norm is None or int_attribute(norm, "axis", -1) not in LAST or len(norm.outputs) > 1:
        return None
    return norm if all(len(static_dims(weight)) == 1 for weight in norm.inputs[1:]) else None


def _flattened(value: ir.Value, before: ir.Node) -> ir.Value:
    """[batch, seq, heads, head_dim] as [batch, seq, heads * head_dim]: what was reshaped into it, if it was that."""
    batch, seq, *_ = dims_of(value)
    width = static_dims(value)[2] * static_dims(value)[3]
    reshape = producer(value, "Reshape")
    if reshape is not None and static_dims(_input(reshape)):
        source = _input(reshape)
        if dims_of(source) == (batch, seq, width):
            return source
        if dims_of(source) == (batch, 1, seq, width):
            return _squeezed(source, (batch, seq, width), before)
    return _reshaped(value, (0, 0, width), before)


def _reshaped(value: ir.Value, shape: tuple[int, ...], before: ir.Node) -> ir.Value:
    """Reshape to constants, where 0 keeps a dimension."""
    kept = dims_of(value)
    dims = [kept[axis] if size == 0 else size for axis, size in enumerate(shape)]
    target = constant_ints(graph_of(before), *shape)
    return emit(before, "Reshape", [value, target], like=value, dims=dims).outputs[0]


def _squeezed(value: ir.Value, dims: tuple[int | ir.SymbolicDim, ...], before: ir.Node) -> ir.Value:
    """Drop axis 1, which is 1."""
    axes = constant_ints(graph_of(before), 1)
    return emit(before, "Squeeze", [value, axes], like=value, dims=dims).outputs[0]


def _input(node: ir.Node) -> ir.Value:
    assert node.inputs[0] is not None
    return node.inputs[0]
