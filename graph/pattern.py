"""Small questions that every rewrite asks of a graph, and one way to add a node or a constant to it."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

MICROSOFT = "com.microsoft"
Attributes = Mapping[str, int | float | str | Sequence[int]]


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The node of the standard domain that makes `value`, if it is one of `op_types`."""
    node = None if value is None else value.producer()
    return node if node is not None and node.domain == "" and node.op_type in op_types else None


def sole_consumer(value: ir.Value) -> ir.Node | None:
    """The one node that reads `value`, if it is read once and is no output of the graph."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not value.is_graph_output() else None


def constants(value: ir.Value | None) -> list[float] | None:
    """The elements of a constant, flattened; None where `value` is computed. For scalars and shapes, not weights."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else [float(item) for item in np.asarray(tensor.numpy()).reshape(-1)]


def array_of(value: ir.Value | None) -> np.ndarray:
    """The elements of an initializer, in its shape and type."""
    assert value is not None
    assert value.const_value is not None
    return np.asarray(value.const_value.numpy())


def is_constants(value: ir.Value | None, *expected: float) -> bool:
    """Whether `value` is a constant of exactly these elements."""
    return constants(value) == list(expected)


def is_weight(value: ir.Value | None, rank: int) -> bool:
    """Whether `value` is an initializer of known shape and of that rank that nobody can feed."""
    return (
        value is not None
        and value.is_initializer()
        and not value.is_graph_input()
        and value.const_value is not None
        and len(value.const_value.shape) == rank
    )


def static_dims(value: ir.Value | None) -> list[int]:
    """The shape of `value`, -1 where a dimension is dynamic; empty where the rank is unknown."""
    if value is None or value.shape is None:
        return []
    return [dim if isinstance(dim, int) else -1 for dim in value.shape]


def dims_of(value: ir.Value | None) -> tuple[int | ir.SymbolicDim, ...]:
    """The shape of a value whose rank is known."""
    assert value is not None
    assert value.shape is not None
    return tuple(value.shape)


def graph_of(node: ir.Node) -> ir.Graph:
    """The graph a node is in."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    return graph


def same_shape(one: ir.Value | None, other: ir.Value | None) -> bool:
    """Whether both have a known, equal shape, symbols included."""
    return one is not None and other is not None and one.shape is not None and one.shape == other.shape


def int_attribute(node: ir.Node, name: str, default: int = 0) -> int:
    """An integer attribute, or its default."""
    return node.attributes[name].as_int() if name in node.attributes else default


def float_attribute(node: ir.Node, name: str, default: float = 0.0) -> float:
    """A float attribute, or its default."""
    return node.attributes[name].as_float() if name in node.attributes else default


def emit(  # noqa: PLR0913
    before: ir.Node,
    op_type: str,
    inputs: Sequence[ir.Value | None],
    attributes: Attributes | None = None,
    *,
    domain: str = "",
    num_outputs: int = 1,
    like: ir.Value | None = None,
    dims: Sequence[int | str | ir.SymbolicDim] | None = None,
) -> ir.Node:
    """Insert a node in front of `before`, named after its module.

    `like` gives the first output its type and, unless `dims` does, its shape.
    """
    module = (before.name or "").rpartition("/")[0]
    node = ir.node(op_type, inputs, attributes or {}, domain=domain, num_outputs=num_outputs)
    node.name = f"{module}/{op_type}" if module else op_type
    if like is not None:
        node.outputs[0].type = like.type
        node.outputs[0].shape = like.shape if dims is None else ir.Shape(dims)
    graph_of(before).insert_before(before, node)
    return node


def constant_ints(graph: ir.Graph, *elements: int) -> ir.Value:
    """An int64 initializer with these elements, shared by all who ask for the same."""
    return constant(graph, "ints." + "_".join(map(str, elements)), np.array(elements, np.int64))


def constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """An initializer, shared by all who ask for the name."""
    return graph.initializers[name] if name in graph.initializers else initializer(graph, name, array)


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A new initializer; raises ValueError where the graph has one of that name."""
    tensor = ir.tensor(array, name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape), const_value=tensor)
    graph.register_initializer(value)
    return value


def replace(old: ir.Value, new: ir.Value) -> None:
    """Let every reader of `old`, the graph's outputs included, read `new`, which takes over its name."""
    name, old.name = old.name, None
    new.name = name
    if new.shape is None:
        new.shape = old.shape
    if new.type is None:
        new.type = old.type
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def tidy(model: ir.Model) -> None:
    """Drop what a rewrite left unread, and make the names of new nodes unique; outputs that are left out have none."""
    common.RemoveUnusedNodesPass()(model)
    left_out = [output for node in model.graph for output in node.outputs if output.name == ""]
    common.NameFixPass()(model)
    for output in left_out:
        output.name = ""
