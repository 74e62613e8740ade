"""Query, key and value cut from one packed tensor go into GroupQueryAttention uncut."""

import itertools
from dataclasses import dataclass

import onnx_ir as ir

from piston.graph.pattern import MICROSOFT, constants, int_attribute, producer, static_dims, tidy


class PackedQkvPass(ir.passes.InPlacePass):
    """Split or Slices -> GroupQueryAttention(q, k, v) becomes GroupQueryAttention(packed, , ), the same values.

    Applies where the three are consecutive, in this order, and together the whole of the packed tensor.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every attention that fits."""
        for node in model.graph:
            if node.op_type != "GroupQueryAttention" or node.domain != MICROSOFT:
                continue
            if (whole := _whole(node)) is not None:
                node.replace_input_with(0, whole)
                node.replace_input_with(1, None)
                node.replace_input_with(2, None)
                self.packed += 1
        if self.packed:
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.packed))


@dataclass(frozen=True, slots=True)
class _Part:
    """Elements start .. stop of the last axis of `whole`."""

    whole: ir.Value
    start: int
    stop: int


def _whole(attention: ir.Node) -> ir.Value | None:
    found = [_part(value) for value in attention.inputs[:3]]
    parts = [part for part in found if part is not None]
    if len(parts) != 3 or len({part.whole for part in parts}) != 1:  # noqa: PLR2004
        return None
    follow = all(one.stop == other.start for one, other in itertools.pairwise(parts))
    whole = parts[0].whole
    return whole if follow and parts[0].start == 0 and parts[2].stop == static_dims(whole)[-1] else None


def _part(value: ir.Value | None) -> _Part | None:
    node = producer(value, "Split", "Slice")
    whole = None if node is None else node.inputs[0]
    rank = len(static_dims(whole))
    if node is None or whole is None or value is None or rank == 0:
        return None
    if node.op_type == "Slice":
        return _slice(node, whole, rank)
    widths = [dims[-1] if (dims := static_dims(output)) else -1 for output in node.outputs]
    if int_attribute(node, "axis") not in (-1, rank - 1) or min(widths) < 0:
        return None
    index = list(node.outputs).index(value)
    return _Part(whole, sum(widths[:index]), sum(widths[: index + 1]))


def _slice(node: ir.Node, whole: ir.Value, rank: int) -> _Part | None:
    given = [constants(value) for value in [*node.inputs[1:], None, None][:4]]
    starts, ends, axes, steps = given
    if starts is None or ends is None or axes is None or len(starts) != 1 or steps not in (None, [1.0]):
        return None
    width = static_dims(whole)[-1]
    start, stop = int(starts[0]), min(int(ends[0]), width)
    return _Part(whole, start, stop) if axes[0] in (-1, rank - 1) and 0 <= start < stop else None
