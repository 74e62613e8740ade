"""Linear layers on one input become one: a longer product keeps every core busy, and starts them once.

Worth it only where nobody cuts the result apart again. Measured in float32 (ONNX Runtime 1.32, two cores, 135M Llama):
query, key and value packed for GroupQueryAttention, which takes them uncut, save 3 % of a decode step; gate and up
packed, then Split, save nothing there and cost 5 % of a prefill. In integers it is the same: W8A8 loses 5 % of a
prefill and 2 % of a step, weight-only 8 and 4 bits gain or lose less than can be measured.
"""

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.linear import Linear, linear_behind, linears_on
from piston.graph.pattern import constant_ints, dims_of, emit, graph_of, replace, static_dims, tidy
from piston.graph.weight import derived_weight

TRANSPARENT = {"Reshape", "Squeeze", "RMSNormalization", "LayerNormalization", "RotaryEmbedding", "Mul"}


class PackLinearsPass(ir.passes.InPlacePass):
    """MatMul (+ Add) by [in, a], [in, b] ... becomes MatMul (+ Add) by [in, a + b ...] and a Split.

    Query, key and value of one attention are packed together and in this order, which PackedQkvPass relies on; what
    else reads the same input is packed together, if `cut` allows results that have to be cut apart. Each output's
    elements are the same sums of the same products.
    """

    def __init__(self, *, cut: bool = False) -> None:
        super().__init__()
        self.cut = cut
        self.packed: list[int] = []  # how many went into each

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Pack every group of at least two."""
        for group in _groups(model.graph, cut=self.cut):
            _pack(group)
            self.packed.append(len(group))
        if self.packed:
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.packed))


def _groups(graph: ir.Graph, *, cut: bool) -> list[list[Linear]]:
    attentions = [node for node in graph if node.op_type == "GroupQueryAttention"]
    groups = [group for node in attentions if (group := _projections(node, through=TRANSPARENT if cut else set()))]
    if not cut:
        return groups
    taken = {linear.matmul for group in groups for linear in group}
    inputs = dict.fromkeys(node.inputs[0] for node in graph if node.op_type == "MatMul")
    for value in inputs:
        assert value is not None
        rest = [linear for linear in linears_on(value) if linear.matmul not in taken]
        if len(rest) > 1 and _are_alike(rest):
            groups.append(rest)
    return groups


def _projections(attention: ir.Node, through: set[str]) -> list[Linear]:
    """The linear layers of query, key and value, if there are three and they read one input."""
    found = [_projection(value, through) for value in attention.inputs[:3]]
    linears = [linear for linear in found if linear is not None]
    distinct = {linear.matmul for linear in linears}
    together = len(distinct) == 3 and len({linear.input for linear in linears}) == 1  # noqa: PLR2004
    return linears if together and _are_alike(linears) else []


def _are_alike(linears: list[Linear]) -> bool:
    """Whether their weights are all float, or all of one grid."""
    return len({linear.quantized and linear.quantized.form for linear in linears}) == 1


def _projection(value: ir.Value | None, through: set[str]) -> Linear | None:
    while value is not None and linear_behind(value) is None:
        node = value.producer()
        value = node.inputs[0] if node is not None and node.op_type in through else None
    return linear_behind(value)


def _pack(group: list[Linear]) -> None:
    """Replace the group by one linear layer; biases only where all have one."""
    if not all(linear.add for linear in group):
        group = [linear.without_bias() for linear in group]
    graph = graph_of(group[0].matmul)
    first = min((linear.matmul for linear in group), key=list(graph).index)
    widths = [linear.width for linear in group]
    biases = [linear.bias for linear in group if linear.bias is not None]
    weight = _packed_weight(group, first)
    dims = (*dims_of(group[0].output)[:-1], sum(widths))
    node = emit(first, "MatMul", [group[0].input, weight], like=group[0].output, dims=dims)
    if biases:
        node = emit(first, "Add", [node.outputs[0], _side_by_side(graph, biases)], like=node.outputs[0])
    sizes = constant_ints(graph, *widths)
    split = emit(first, "Split", [node.outputs[0], sizes], {"axis": -1}, num_outputs=len(group))
    for linear, part in zip(group, split.outputs, strict=True):
        replace(linear.output, part)


def _packed_weight(group: list[Linear], before: ir.Node) -> ir.Value:
    """The weight of all, dequantized as theirs are."""
    columns = zip(*(linear.constants for linear in group), strict=True)
    packed = [_side_by_side(graph_of(before), list(values)) for values in columns]
    quantized = group[0].quantized
    if quantized is None:
        return packed[0]
    like, dims = quantized.node.outputs[0], static_dims(packed[0])
    node = emit(before, "DequantizeLinear", packed, like=like, dims=dims)
    node.attributes.update(quantized.node.attributes)
    return node.outputs[0]


def _side_by_side(graph: ir.Graph, weights: list[ir.Value]) -> ir.Value:
    """One weight whose last axis is that of all `weights`, one after the other."""
    widths = [static_dims(weight)[-1] for weight in weights]
    name = "+".join(weight.name or "" for weight in weights)
    return derived_weight(graph, name, weights, [*static_dims(weights[0])[:-1], sum(widths)], _columns)


def _columns(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays, axis=-1)
