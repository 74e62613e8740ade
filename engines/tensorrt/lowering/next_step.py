"""What a decode step must be given next, as outputs: `next.X` is copied into the input X, and no host is asked."""

import numpy as np
import onnx_ir as ir

from piston.graph.pattern import constant

ONE, LAST = "one.int64", "last.position"


class NextStepPass(ir.passes.InPlacePass):
    """Adds next.position_ids [batch, k], next.write_indices [batch] and next.kv_lengths [batch].

    They follow from the positions of the rows that get logits; the slot of a token is its position. At `max_length`
    they stop growing, so that a row left running past its end writes no other memory than its last slot.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Append the arithmetic."""
        graph = model.graph
        inputs = {value.name: value for value in graph.inputs}
        batch, kept = inputs["logits_positions"].shape  # type: ignore[misc]
        one, last = numbers(graph, ONE, 1), numbers(graph, LAST, self.max_length - 1)
        index = append(
            graph, "Unsqueeze", [inputs["logits_positions"], numbers(graph, "axis.-1", [-1])], (batch, kept, 1)
        )
        current = append(graph, "GatherND", [inputs["position_ids"], index], (batch, kept), {"batch_dims": 1})
        current.name = "positions"
        later = append(graph, "Add", [current, one], (batch, kept))
        position = append(graph, "Min", [later, last], (batch, kept), output="next.position_ids")
        ends = [
            numbers(graph, name, [element]) for name, element in (("axis.-1", -1), ("end", 2**31 - 1), ("axis.1", 1))
        ]
        tail = append(graph, "Slice", [position, *ends], (batch, 1))
        slot = append(graph, "Squeeze", [tail, ends[-1]], (batch,), output="next.write_indices")
        append(graph, "Add", [slot, one], (batch,), output="next.kv_lengths")
        return ir.passes.PassResult(model, modified=True)


def numbers(graph: ir.Graph, name: str, elements: object, dtype: type = np.int64) -> ir.Value:
    """An initializer, shared by name."""
    return constant(graph, name, np.array(elements, dtype))


def append(  # noqa: PLR0913
    graph: ir.Graph,
    op_type: str,
    inputs: list[ir.Value | None],
    dims: tuple[int | str | ir.SymbolicDim, ...],
    attributes: dict[str, int] | None = None,
    dtype: ir.DataType = ir.DataType.INT64,
    *,
    output: str | None = None,
) -> ir.Value:
    """Append a node below `next/`; `output` makes its result an output of the graph by that name."""
    count = sum((node.name or "").startswith("next/") for node in graph)
    node = ir.node(op_type, inputs, attributes or {}, name=f"next/{op_type}_{count}")
    graph.append(node)
    value = node.outputs[0]
    value.name = output or f"next/{count}"
    value.shape, value.type = ir.Shape(dims), ir.TensorType(dtype)
    if output:
        graph.outputs.append(value)
    return value
