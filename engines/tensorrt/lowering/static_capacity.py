"""The cache gets a fixed capacity: KVCacheUpdate wants one, and masks then count slots by a constant.

So do the cross states of a decoder with an encoder, which then stay where they are in memory.
"""

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import is_cross, is_past, is_present
from piston.graph.pattern import constant, constants, int_attribute, producer, tidy

CAPACITY_AXIS = 2  # of [batch, kv_heads, capacity, head_dim]
SLOTS = "cache.slots"


class StaticCapacityPass(ir.passes.InPlacePass):
    """Writes `capacity` into the shape of every past and present; Range(0, capacity, 1) becomes its elements.

    `source` is written into those of cross states.
    """

    def __init__(self, capacity: int, source: int = 0) -> None:
        super().__init__()
        self.capacity = capacity
        self.source = source

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fix the shapes, then what was computed from them."""
        graph = model.graph
        for value in (*graph.inputs, *graph.outputs):
            if is_past(value.name) or is_present(value.name) or is_cross(value.name):
                assert value.shape is not None
                dims = list(value.shape)
                dims[CAPACITY_AXIS] = self.source if is_cross(value.name) else self.capacity
                value.shape = ir.Shape(dims)
        (input_ids,) = [value for value in graph.inputs if value.name == "input_ids"]
        for node in graph:
            if node.op_type == "Shape" and _is_cache(node.inputs[0]) and int_attribute(node, "end") == 1:
                node.replace_input_with(0, input_ids)  # the batch, which both have first
        for counted in [node for node in graph if node.op_type == "Range" and self._is_slots(node)]:
            counted.outputs[0].replace_all_uses_with(_slots(graph, self.capacity))
        tidy(model)
        return ir.passes.PassResult(model, modified=True)

    def ensures(self, model: ir.Model) -> None:
        """No cache has a dynamic capacity, and nothing asks for its size."""
        for value in model.graph.inputs:
            if is_past(value.name) and [value.shape[CAPACITY_AXIS]] != [self.capacity]:  # type: ignore[index]
                raise ir.passes.PostconditionError(f"{value.name} has no static capacity.")
        for node in model.graph:
            if node.op_type == "Shape" and _is_cache(node.inputs[0]):
                raise ir.passes.PostconditionError(f"{node.name} still reads the capacity.")

    def _is_slots(self, node: ir.Node) -> bool:
        start, size, step = node.inputs
        shape = producer(size, "Squeeze")
        source = producer(size if shape is None else shape.inputs[0], "Shape")
        return (
            constants(start) == [0]
            and constants(step) == [1]
            and source is not None
            and _is_cache(source.inputs[0])
            and int_attribute(source, "start") == CAPACITY_AXIS
        )


def _is_cache(value: ir.Value | None) -> bool:
    return value is not None and is_past(value.name) and value.is_graph_input()


def _slots(graph: ir.Graph, capacity: int) -> ir.Value:
    return constant(graph, SLOTS, np.arange(capacity, dtype=np.int64))
