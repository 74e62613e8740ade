"""A linear layer as the canonical graph writes it: MatMul by [in, out], perhaps Add of a constant [out].

The matrix is a constant, or a DequantizeLinear of constants.
"""

from dataclasses import dataclass

import onnx_ir as ir

from piston.graph.pattern import is_weight, sole_consumer, static_dims
from piston.graph.qdq import QuantizedWeight, quantized_weight


@dataclass(frozen=True, slots=True)
class Linear:
    """The nodes of one linear layer."""

    matmul: ir.Node
    add: ir.Node | None
    quantized: QuantizedWeight | None = None

    @property
    def input(self) -> ir.Value:
        """What it reads."""
        assert self.matmul.inputs[0] is not None
        return self.matmul.inputs[0]

    @property
    def output(self) -> ir.Value:
        """What it makes, bias included."""
        return (self.add or self.matmul).outputs[0]

    @property
    def constants(self) -> list[ir.Value]:
        """What the matrix is made of, each with the outputs along its last axis: itself, or its codes and scales."""
        if self.quantized is not None:
            return [self.quantized.codes, self.quantized.scales]
        assert self.matmul.inputs[1] is not None
        return [self.matmul.inputs[1]]

    @property
    def bias(self) -> ir.Value | None:
        """[out]."""
        return None if self.add is None else next(value for value in self.add.inputs if is_weight(value, 1))

    @property
    def width(self) -> int:
        """Its number of outputs."""
        return static_dims(self.constants[0])[1]

    def without_bias(self) -> "Linear":
        """The MatMul alone."""
        return Linear(self.matmul, None, self.quantized)


def linear_of(matmul: ir.Node) -> Linear | None:
    """The linear layer that begins with `matmul`, if it is one."""
    if matmul.op_type != "MatMul" or matmul.domain:
        return None
    quantized = quantized_weight(matmul.inputs[1])
    if quantized is None and not is_weight(matmul.inputs[1], 2):
        return None
    linear = Linear(matmul, None, quantized)
    add = sole_consumer(matmul.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return linear
    biased = any(is_weight(value, 1) and static_dims(value) == [linear.width] for value in add.inputs)
    return Linear(matmul, add, quantized) if biased else linear


def linears_on(value: ir.Value) -> list[Linear]:
    """The linear layers that read `value`, in the order of the graph's uses."""
    matmuls = [use.node for use in value.uses() if use.idx == 0]
    return [linear for matmul in matmuls if (linear := linear_of(matmul)) is not None]


def linear_behind(value: ir.Value | None) -> Linear | None:
    """The linear layer whose output is `value`."""
    node = None if value is None else value.producer()
    if node is not None and node.op_type == "Add":
        matmuls = [item.producer() for item in node.inputs if item is not None]
        node = next((item for item in matmuls if item is not None and item.op_type == "MatMul"), None)
    linear = None if node is None else linear_of(node)
    return linear if linear is not None and linear.output is value else None
