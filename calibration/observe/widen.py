"""float16 and bfloat16 graphs in float32, without a second copy of their weights."""

import onnx_ir as ir

NARROW = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
WIDE = ir.DataType.FLOAT


class WidenPass(ir.passes.InPlacePass):
    """Everything computed becomes float32; each weight is cast where it is read, and freed again.

    The CPU has no bfloat16 kernels, and what calibration measures should not be blurred by float16 sums. Widening is
    exact. A table that is gathered from is cast after the Gather, so that only the rows in use are.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the casts and retype values, inputs and casts to narrow types."""
        graph = model.graph
        narrow = [value for value in graph.initializers.values() if value.dtype in NARROW]
        computed = [*graph.inputs, *(value for node in graph for value in node.outputs)]
        widened = [value for value in computed if value.dtype in NARROW]
        for value in widened:
            value.dtype = WIDE
        for node in graph:
            if node.op_type == "Cast" and ir.DataType(node.attributes["to"].as_int()) in NARROW:
                node.attributes["to"] = ir.AttrInt64("to", int(WIDE))
        for value in narrow:
            for node, index in list(value.uses()):
                if node.op_type == "Gather" and index == 0:
                    _cast_after(node, value.dtype)
                else:
                    node.replace_input_with(index, _cast_before(node, value))
        return ir.passes.PassResult(model, modified=bool(narrow or widened))


def _cast_after(node: ir.Node, dtype: ir.DataType | None) -> None:
    """Let readers of the node's output read a float32 copy of it."""
    assert dtype is not None
    output = node.outputs[0]
    cast = ir.node("Cast", [output], {"to": int(WIDE)})
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = f"{output.name}.wide", ir.TensorType(WIDE), output.shape
    output.replace_all_uses_with(wide, replace_graph_outputs=True)
    cast.replace_input_with(0, output)
    output.dtype = dtype
    _graph(node).insert_after(node, cast)


def _cast_before(node: ir.Node, value: ir.Value) -> ir.Value:
    """A float32 copy of `value` for the node alone."""
    cast = ir.node("Cast", [value], {"to": int(WIDE)})
    wide = cast.outputs[0]
    wide.name, wide.type, wide.shape = f"{node.name}/{value.name}.wide", ir.TensorType(WIDE), value.shape
    _graph(node).insert_before(node, cast)
    return wide


def _graph(node: ir.Node) -> ir.Graph:
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return graph
