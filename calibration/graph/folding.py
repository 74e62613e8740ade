"""Where a division of a linear's input channels costs nothing: in the weights of what produces them.

Three producers can take it: a norm whose output only these linears read, the factor of a gated product that is itself a
linear's output, and v_proj, through attention, where every query head of a group shares its key-value head's columns.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.graph.linears import Linear
from piston.graph.pattern import array_of
from piston.graph.rounding import Floats

NORMS = ("RMSNormalization", "LayerNormalization")


@dataclass(frozen=True, slots=True)
class Fold:
    """Initializers whose last axis is divided; `source` maps each input channel to its place there, int [K]."""

    source: NDArray[np.int64]
    divided: list[ir.Value] = field(default_factory=list)
    into_norm: bool = False  # whose parameters stay in float; else into weights of linears

    @property
    def shared(self) -> NDArray[np.int64] | None:
        """Groups of channels that must have one factor, or None where each has its own."""
        return None if len(np.unique(self.source)) == len(self.source) else self.source


def find_fold(group: Sequence[Linear]) -> Fold | None:
    """How the common input of `group` can be divided by channel, or None if nothing can absorb it."""
    value = group[0].input
    readers = {linear.matmul for linear in group}
    if any(linear.is_transposed or linear.is_tied for linear in group) or {user for user, _ in value.uses()} != readers:
        return None
    producer = value.producer()
    if producer is None:
        return None
    if producer.op_type in NORMS:
        return _into_norm(producer)
    if producer.op_type == "Mul":
        return _into_factor(producer)
    if producer.op_type == "Reshape":
        return _into_values(producer)
    return None


def apply_fold(fold: Fold, group: Sequence[Linear], factors: Floats) -> None:
    """Divide the producer and multiply the readers; the model's function is unchanged."""
    by_source = np.ones(int(fold.source.max()) + 1, np.float32)
    by_source[fold.source] = factors
    for value in fold.divided:
        _set(value, array_of(value).astype(np.float32) / by_source)
    for linear in group:
        _set(linear.weight, array_of(linear.weight).astype(np.float32) * factors[:, None])


def _into_norm(norm: ir.Node) -> Fold | None:
    parameters = [value for value in norm.inputs[1:] if value is not None]
    return _fold(parameters, into_norm=True) if all(_is_own(value) for value in parameters) else None


def _into_factor(product: ir.Node) -> Fold | None:
    for factor in product.inputs:
        if factor is not None and len(factor.uses()) == 1 and (parameters := _linear_parameters(factor)):
            return _fold(parameters)
    return None


def _into_values(reshape: ir.Node) -> Fold | None:
    """o_proj's input [.., heads * head_dim] back to the columns of v_proj [.., kv_heads * head_dim]."""
    attention = _walk(reshape, "Transpose", "Attention")
    scatter = _producer(attention, 2, "TensorScatter") if attention is not None else None
    split = _producer(scatter, 1, "Transpose") if scatter is not None else None
    merged = _producer(split, 0, "Reshape") if split is not None else None
    parameters = _linear_parameters(merged.inputs[0]) if merged is not None else None
    if attention is None or scatter is None or parameters is None:
        return None
    query, values = attention.inputs[0], scatter.inputs[1]
    if query is None or values is None or query.shape is None or values.shape is None:
        return None
    heads, kv_heads, head_dim = query.shape[1], values.shape[1], values.shape[3]
    if not (isinstance(heads, int) and isinstance(kv_heads, int) and isinstance(head_dim, int)):
        return None
    head, place = np.divmod(np.arange(heads * head_dim), head_dim)
    return Fold(head // (heads // kv_heads) * head_dim + place, parameters)


def _linear_parameters(value: ir.Value | None) -> list[ir.Value] | None:
    """Weight, and bias if there is one, of the linear that computes `value`; None if no linear of its own does."""
    node = value.producer() if value is not None else None
    bias: list[ir.Value] = []
    if node is not None and node.op_type == "Add":
        constants = [item for item in node.inputs if item is not None and item.is_initializer()]
        computed = [item for item in node.inputs if item is not None and not item.is_initializer()]
        if len(constants) != 1 or len(computed) != 1 or not _is_own(constants[0]):
            return None
        bias, node = constants, computed[0].producer()
    if node is None or node.op_type != "MatMul" or len(node.outputs[0].uses()) != 1:
        return None
    weight = node.inputs[1]
    return [weight, *bias] if weight is not None and _is_own(weight) else None


def _fold(parameters: list[ir.Value], *, into_norm: bool = False) -> Fold:
    shape = parameters[0].shape
    assert shape is not None
    width = shape[-1]
    assert isinstance(width, int)
    return Fold(np.arange(width), parameters, into_norm)


def _walk(node: ir.Node, *op_types: str) -> ir.Node | None:
    for op_type in op_types:
        following = _producer(node, 0, op_type)
        if following is None:
            return None
        node = following
    return node


def _producer(node: ir.Node, index: int, op_type: str) -> ir.Node | None:
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    if producer is None or producer.op_type != op_type:
        return None
    if op_type != "TensorScatter" and len(producer.outputs[0].uses()) != 1:
        return None
    return producer


def _is_own(value: ir.Value) -> bool:
    """An initializer that nothing else reads."""
    return value.is_initializer() and len(value.uses()) == 1 and value.const_value is not None


def _set(value: ir.Value, array: Floats) -> None:
    value.const_value = ir.tensor(np.ascontiguousarray(array, np.float32), name=value.name)
