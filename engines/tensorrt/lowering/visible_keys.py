"""Which keys a query may see, as one mask: lengths, a mask or bias, and the causal rule of an Attention together."""

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import constant, constant_ints, dims_of, emit, graph_of, int_attribute, static_dims

# Added to a score it leaves nothing of its weight. The lowest of float16, which all types have.
LOWEST = float(np.finfo(np.float16).min)
RANK, ROW = 4, 2  # [batch, heads, seq, head_dim], and its seq
BOOL, INT64 = ir.DataType.BOOL, ir.DataType.INT64
Dim = int | str | ir.SymbolicDim


class VisibleKeys:
    """The masks of a graph's attentions: those that read the same mask and lengths share one."""

    def __init__(self) -> None:
        self._made: dict[tuple[object, ...], ir.Value] = {}

    def mask_of(self, node: ir.Node) -> ir.Value:
        """[batch, heads or 1, queries, keys] in bool, or float32 that is added, for an Attention with a mask."""
        mask, lengths = [*node.inputs, *[None] * 4][3:7:3]
        assert mask is not None
        is_causal = bool(int_attribute(node, "is_causal"))
        key = (mask.name, None if lengths is None else lengths.name, is_causal)
        if key not in self._made:
            self._made[key] = _made(node, _of_rank_4(node, mask), lengths, is_causal=is_causal)
        return self._made[key]


def _of_rank_4(node: ir.Node, mask: ir.Value) -> ir.Value:
    dims = dims_of(mask)
    missing = RANK - len(dims)
    if not missing:
        return mask
    axes = constant_ints(graph_of(node), *range(missing))
    return emit(node, "Unsqueeze", [mask, axes], like=mask, dims=[*[1] * missing, *dims]).outputs[0]


def _made(node: ir.Node, mask: ir.Value, lengths: ir.Value | None, *, is_causal: bool) -> ir.Value:
    if lengths is None:
        return mask
    graph, query, key = graph_of(node), node.inputs[0], node.inputs[1]
    batch, queries, keys = dims_of(query)[0], dims_of(query)[ROW], dims_of(key)[ROW]
    columns, rows = _counted(node, key), _counted(node, query)
    row = _unsqueezed(node, rows, (1,), (queries, 1))
    ends = _unsqueezed(node, lengths, (1, 2, 3), (batch, 1, 1, 1))
    if is_causal:  # query i sees keys up to i + lengths - queries
        size = _size(node, query)
        last = _do(node, "Add", [row, _do(node, "Sub", [ends, size], (batch, 1, 1, 1))], (batch, 1, queries, 1))
        seen = _do(node, "LessOrEqual", [columns, last], (batch, 1, queries, keys), BOOL)
    else:
        seen = _do(node, "Less", [columns, ends], (batch, 1, 1, keys), BOOL)
    if mask.dtype != BOOL:
        lowest = constant(graph, "lowest.float32", np.array(LOWEST, np.float32))
        heads = dims_of(mask)[1]
        return emit(node, "Where", [seen, mask, lowest], like=mask, dims=[batch, heads, queries, keys]).outputs[0]
    both = _do(node, "And", [mask, seen], (batch, 1, queries, keys), BOOL)
    if queries != keys:  # no query is known to be padding
        return both
    # A query that is padding sees one key, its own: without any its result would be no number, which the next layer's
    # weights of zero do not silence. What other queries see is the mask's alone.
    if is_causal:
        zero = constant(graph, "number.0", np.array(0, np.int64))
        is_padding = _do(node, "Less", [last, zero], (batch, 1, queries, 1), BOOL)
    else:
        is_padding = _do(node, "GreaterOrEqual", [row, ends], (batch, 1, queries, 1), BOOL)
    own = _do(node, "Equal", [row, columns], (queries, keys), BOOL)
    own = _do(node, "And", [own, is_padding], (batch, 1, queries, keys), BOOL)
    return _do(node, "Or", [both, own], (batch, 1, queries, keys), BOOL)


def _counted(node: ir.Node, value: ir.Value | None) -> ir.Value:
    """0, 1, ... along the seq of [batch, heads, seq, head_dim]."""
    graph, size = graph_of(node), static_dims(value)[ROW]
    if size >= 0:
        return constant(graph, f"counted.{size}", np.arange(size, dtype=np.int64))
    scalars = [constant(graph, f"number.{number}", np.array(number, np.int64)) for number in (0, 1)]
    return _do(node, "Range", [scalars[0], _size(node, value), scalars[1]], (dims_of(value)[ROW],))


def _size(node: ir.Node, value: ir.Value | None) -> ir.Value:
    shape = emit(node, "Shape", [value], {"start": ROW, "end": ROW + 1}).outputs[0]
    shape.type, shape.shape = ir.TensorType(INT64), ir.Shape([1])
    return _do(node, "Squeeze", [shape, constant_ints(graph_of(node), 0)], ())


def _unsqueezed(node: ir.Node, value: ir.Value, axes: tuple[int, ...], dims: tuple[Dim, ...]) -> ir.Value:
    return _do(node, "Unsqueeze", [value, constant_ints(graph_of(node), *axes)], dims)


def _do(
    node: ir.Node, op_type: str, inputs: list[ir.Value | None], dims: tuple[Dim, ...], dtype: ir.DataType = INT64
) -> ir.Value:
    result = emit(node, op_type, inputs).outputs[0]
    result.type, result.shape = ir.TensorType(dtype), ir.Shape(dims)
    return result
