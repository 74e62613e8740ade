"""The linear layers of a canonical graph: every MatMul of a computed value by a constant matrix; sums beside them."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from piston.calibration.graph.names import own_names

MATRIX = 2  # dimensions
HEADS = ("lm_head", "proj_out")  # as language models, and Whisper, call what makes the logits


@dataclass(frozen=True, slots=True)
class Linear:
    """One MatMul [.., K] x [K, N]."""

    # Path of its module, such as "model.layers.0.self_attn.q_proj"; where a module is run again, as of ALBERT's
    # layers, with @2, @3, ... behind it.
    name: str
    matmul: ir.Node
    weight: ir.Value  # the initializer: [K, N], or [N, K] if is_transposed
    is_transposed: bool  # between weight and MatMul stands a Transpose, as where lm_head is tied to the embedding
    is_head: bool = False  # it makes the logits of the next token

    @property
    def input(self) -> ir.Value:
        """What it reads, [batch, seq, K]."""
        value = self.matmul.inputs[0]
        assert value is not None
        return value

    @property
    def input_name(self) -> str:
        """The name of what it reads: what observers are kept by."""
        name = self.input.name
        assert name
        return name

    @property
    def shape(self) -> tuple[int, int]:
        """(K, N)."""
        rows, columns = _dims(self.weight)
        return (columns, rows) if self.is_transposed else (rows, columns)

    @property
    def is_tied(self) -> bool:
        """Whether something else reads the weight too."""
        return len(self.weight.uses()) > 1


def find_linears(model: ir.Model, *, is_decoder: bool = True) -> list[Linear]:
    """All of them, in the order of the graph; each has a name of its own, and some may share a weight.

    Only a decoder has a head: a module of one's own may call another layer so.
    """
    found = [linear for node in model.graph if (linear := _linear(node)) is not None]
    names = own_names(linear.name for linear in found)
    return [
        dataclasses.replace(linear, name=name, is_head=is_decoder and name in HEADS)
        for linear, name in zip(found, names, strict=True)
    ]


def by_input(linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Name of a value: the linears that read it, such as query, key and value, or gate and up."""
    groups: dict[str, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.input_name, []).append(linear)
    return groups


def by_weight(linears: Iterable[Linear]) -> dict[str, list[Linear]]:
    """Name of the first linear that reads a weight: all that read it, such as the runs of a module in every layer."""
    groups: dict[ir.Value, list[Linear]] = {}
    for linear in linears:
        groups.setdefault(linear.weight, []).append(linear)
    return {group[0].name: group for group in groups.values()}


def sum_beside(linear: Linear, kind: str, read: ir.Value, weight: ir.Value | None) -> None:
    """Add the product of another value by another weight to what the linear gives, behind its bias."""
    last, graph = linear.matmul, linear.matmul.graph
    assert isinstance(graph, ir.Graph)
    users = [user for user, _ in last.outputs[0].uses()]
    if len(users) == 1 and users[0].op_type == "Add" and any(_is_constant(item) for item in users[0].inputs):
        last = users[0]
    product = ir.node("MatMul", [read, weight], name=f"{linear.name}/{kind}/MatMul")
    total = ir.node("Add", [last.outputs[0], product.outputs[0]], name=f"{linear.name}/{kind}/Add")
    for node, suffix in ((product, "product"), (total, "sum")):
        output = node.outputs[0]
        output.name, output.type = f"{linear.name}.{kind}.{suffix}", last.outputs[0].type
        output.shape = last.outputs[0].shape
    if last.outputs[0].is_graph_output():  # whoever runs the graph knows it by its name
        last.outputs[0].name, total.outputs[0].name = total.outputs[0].name, last.outputs[0].name
    last.outputs[0].replace_all_uses_with(total.outputs[0], replace_graph_outputs=True)
    total.replace_input_with(0, last.outputs[0])
    graph.insert_after(last, [product, total])


def _is_constant(value: ir.Value | None) -> bool:
    return value is not None and value.is_initializer()


def _linear(node: ir.Node) -> Linear | None:
    if node.op_type != "MatMul" or node.domain or node.inputs[0] is None or _is_matrix(node.inputs[0]):
        return None
    weight = node.inputs[1]
    transpose = weight.producer() if weight is not None else None
    is_transposed = transpose is not None and transpose.op_type == "Transpose" and not transpose.domain
    if is_transposed:
        assert transpose is not None
        weight = transpose.inputs[0]
    if weight is None or not _is_matrix(weight):
        return None
    name = (node.name or "").rpartition("/")[0] or (weight.name or "").removesuffix(".weight")
    return Linear(name, node, weight, is_transposed)


def _is_matrix(value: ir.Value) -> bool:
    """Whether it is a constant matrix that nobody can feed."""
    return value.is_initializer() and not value.is_graph_input() and len(_dims(value)) == MATRIX


def _dims(value: ir.Value) -> list[int]:
    assert value.const_value is not None
    return list(value.const_value.shape.numpy())
