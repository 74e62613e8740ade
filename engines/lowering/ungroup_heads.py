"""A packed linear whose outputs are grouped by head (GPT-NeoX) gets its columns in the order query, key, value."""

import functools

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.linear import Linear, linear_behind
from piston.engines.lowering.merged_heads import is_head_swap
from piston.graph.pattern import (
    constant_ints,
    dims_of,
    emit,
    graph_of,
    int_attribute,
    producer,
    replace,
    sole_consumer,
    static_dims,
    tidy,
)
from piston.graph.weight import derived_weight

PARTS, RANK = 3, 4


class UngroupHeadsPass(ir.passes.InPlacePass):
    """Linear -> Reshape [0, 0, H, 3D] -> Transpose -> Split becomes Linear -> Split -> Reshape and Transpose of each.

    The weight's columns are permuted from [H, 3, D] to [3, H, D]; every element keeps its value.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every such Split."""
        modified = False
        for split in [node for node in model.graph if node.op_type == "Split"]:
            if (linear := _match(split)) is not None:
                _rewrite(split, linear)
                modified = True
        if modified:
            tidy(model)
        return ir.passes.PassResult(model, modified=modified)


def _match(split: ir.Node) -> Linear | None:
    if len(split.outputs) != PARTS or int_attribute(split, "axis") not in (-1, RANK - 1):
        return None
    if len({tuple(static_dims(output)) for output in split.outputs}) != 1:
        return None
    transpose = producer(split.inputs[0], "Transpose")
    reshape = None if transpose is None else producer(transpose.inputs[0], "Reshape")
    if transpose is None or reshape is None or not is_head_swap(transpose):
        return None
    linear = linear_behind(reshape.inputs[0])
    if linear is None or any(sole_consumer(node.outputs[0]) is None for node in (transpose, reshape)):
        return None
    keeps_rows = dims_of(linear.output)[:2] == dims_of(reshape.outputs[0])[:2]
    return linear if keeps_rows and sole_consumer(linear.output) is reshape else None


def _rewrite(split: ir.Node, linear: Linear) -> None:
    graph = graph_of(split)
    _, heads, _, head_dim = static_dims(split.outputs[0])
    order = functools.partial(_by_part, heads=heads, head_dim=head_dim)
    readers = [linear.matmul, linear.add, None if linear.quantized is None else linear.quantized.node]
    for source in [*linear.constants, linear.bias]:
        if source is None:
            continue
        ordered = derived_weight(graph, f"{source.name}.ungrouped", [source], static_dims(source), order)
        for node in readers:
            if node is not None and source in node.inputs:
                node.replace_input_with(list(node.inputs).index(source), ordered)
    width, (batch, seq, _) = heads * head_dim, dims_of(linear.output)
    sizes, shape = constant_ints(graph, *[width] * PARTS), constant_ints(graph, 0, 0, heads, head_dim)
    parts = emit(split, "Split", [linear.output, sizes], {"axis": -1}, num_outputs=PARTS)
    for part, old in zip(parts.outputs, split.outputs, strict=True):
        part.shape, part.type = ir.Shape([batch, seq, width]), old.type
        by_head = emit(split, "Reshape", [part, shape], like=part, dims=[batch, seq, heads, head_dim])
        swapped = emit(split, "Transpose", by_head.outputs, {"perm": (0, 2, 1, 3)}, like=old)
        replace(old, swapped.outputs[0])


def _by_part(array: np.ndarray, heads: int, head_dim: int) -> np.ndarray:
    grouped = array.reshape(*array.shape[:-1], heads, PARTS, head_dim)
    return np.moveaxis(grouped, -2, -3).reshape(array.shape)
