"""The convolutions of a graph: every Conv of a computed value by a constant kernel."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from piston.calibration.graph.names import own_names
from piston.graph.pattern import array_of
from piston.graph.rounding import Floats

LEAST = 3  # dimensions: [out, in / groups, width]


@dataclass(frozen=True, slots=True)
class Convolution:
    """One Conv."""

    name: str  # path of its module, such as "features.0"
    node: ir.Node
    weight: ir.Value  # the initializer: [out, in / groups, ...]

    @property
    def input_name(self) -> str:
        """The name of what it reads."""
        value = self.node.inputs[0]
        assert value is not None
        assert value.name
        return value.name

    @property
    def matrix(self) -> Floats:
        """The kernel as [K, out]: K weights of each output channel, float32."""
        array = np.asarray(array_of(self.weight), np.float32)
        return np.ascontiguousarray(array.reshape(len(array), -1).T)


def find_convolutions(model: ir.Model) -> list[Convolution]:
    """All of them, in the order of the graph."""
    found = [convolution for node in model.graph if (convolution := _convolution(node)) is not None]
    names = own_names(convolution.name for convolution in found)
    return [dataclasses.replace(convolution, name=name) for convolution, name in zip(found, names, strict=True)]


def _convolution(node: ir.Node) -> Convolution | None:
    if node.op_type != "Conv" or node.domain or node.inputs[0] is None or node.inputs[0].is_initializer():
        return None
    weight = node.inputs[1]
    if weight is None or not weight.is_initializer() or weight.is_graph_input() or weight.const_value is None:
        return None
    if len(weight.const_value.shape) < LEAST:
        return None
    # Not the node's: where a norm was folded into the kernel, it has the norm's name.
    name, is_named, _ = (weight.name or "").rpartition(".weight")
    name = name if is_named else (node.name or "").rpartition("/")[0] or weight.name or ""
    return Convolution(name, node, weight)
