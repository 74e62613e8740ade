"""Recognising the canonical graph's sliding window by what the mask computes, never by what a config says of it."""

import onnx_ir as ir

from piston.core.bundle.interface import is_past
from piston.graph.pattern import constants, int_attribute, is_constants, producer

CACHE_AXIS = 2  # of [batch, kv_heads, capacity, head_dim]


def window_of(mask: ir.Value | None) -> int | None:
    """W, if `mask` is And(keys <= queries, keys > queries - W) with keys 0 .. capacity-1 and queries position_ids."""
    both = producer(mask, "And")
    if both is None:
        return None
    for causal, near in (both.inputs, reversed(both.inputs)):
        at_most, more_than = producer(causal, "LessOrEqual"), producer(near, "Greater")
        if at_most is None or more_than is None:
            continue
        keys, queries = at_most.inputs
        reach = producer(more_than.inputs[1], "Sub")
        if more_than.inputs[0] is not keys or reach is None or reach.inputs[0] is not queries:
            continue
        width = constants(reach.inputs[1])
        if width is not None and len(width) == 1 and width[0] >= 1 and _are_slots(keys) and _are_positions(queries):
            return int(width[0])
    return None


def _are_slots(keys: ir.Value | None) -> bool:
    """Whether `keys` counts the cache's slots from zero."""
    counted = producer(keys, "Range")
    if counted is None or not is_constants(counted.inputs[0], 0) or not is_constants(counted.inputs[2], 1):
        return False
    size = producer(counted.inputs[1], "Squeeze")
    shape = None if size is None else producer(size.inputs[0], "Shape")
    past = None if shape is None else shape.inputs[0]
    if shape is None or past is None or not past.is_graph_input() or not is_past(past.name):
        return False
    return int_attribute(shape, "start") == CACHE_AXIS and int_attribute(shape, "end", -1) == CACHE_AXIS + 1


def _are_positions(queries: ir.Value | None) -> bool:
    """Whether `queries` is position_ids as [batch, 1, seq, 1]."""
    unsqueeze = producer(queries, "Unsqueeze")
    positions = None if unsqueeze is None else unsqueeze.inputs[0]
    return (
        unsqueeze is not None
        and positions is not None
        and positions.name == "position_ids"
        and positions.is_graph_input()
        and is_constants(unsqueeze.inputs[1], 1, 3)
    )
