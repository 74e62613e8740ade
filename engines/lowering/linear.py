"""A linear layer as the canonical graph writes it: MatMul by a constant [in, out], perhaps Add of a constant [out]."""

from dataclasses import dataclass

import onnx_ir as ir

from piston.engines.lowering.pattern import is_weight, sole_consumer, static_dims


@dataclass(frozen=True, slots=True)
class Linear:
    """The nodes of one linear layer."""

    matmul: ir.Node
    add: ir.Node | None

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
    def weight(self) -> ir.Value:
        """[in, out]."""
        assert self.matmul.inputs[1] is not None
        return self.matmul.inputs[1]

    @property
    def bias(self) -> ir.Value | None:
        """[out]."""
        return None if self.add is None else next(value for value in self.add.inputs if is_weight(value, 1))

    @property
    def width(self) -> int:
        """Its number of outputs."""
        return static_dims(self.weight)[1]

    def without_bias(self) -> "Linear":
        """The MatMul alone."""
        return Linear(self.matmul, None)


def linear_of(matmul: ir.Node) -> Linear | None:
    """The linear layer that begins with `matmul`, if it is one."""
    if matmul.op_type != "MatMul" or matmul.domain or not is_weight(matmul.inputs[1], 2):
        return None
    add = sole_consumer(matmul.outputs[0])
    if add is None or add.op_type != "Add" or add.domain:
        return Linear(matmul, None)
    width = static_dims(matmul.inputs[1])[1:]
    biased = any(is_weight(value, 1) and static_dims(value) == width for value in add.inputs)
    return Linear(matmul, add if biased else None)


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
