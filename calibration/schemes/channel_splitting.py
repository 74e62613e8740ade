"""Large inputs of linears split: a channel is divided by a whole number and read as often, with the same weights.

Zhao et al., "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting", ICML 2019. The
sum is the same. A kernel that rounds activations in blocks no longer spends its codes on a few channels, and what the
rounding of one copy's weight gets wrong another's makes up for: the channel has weights of more bits.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.graph.linears import Linear
from piston.graph.pattern import array_of, initializer
from piston.graph.rounding import Floats

Source = NDArray[np.int64]


def split_largest(magnitudes: Floats, extra: int) -> Source:
    """Where each input comes from, int64 [K + extra], the K channels themselves and then `extra` copies.

    Args:
        magnitudes: of the channels, [K]; the one whose copies are largest gets the next.
        extra: copies, 0 for none.
    """
    count = np.ones(len(magnitudes), np.int64)
    for _ in range(extra):
        count[np.argmax(magnitudes / count)] += 1
    return np.concatenate([np.arange(len(count)), np.repeat(np.arange(len(count)), count - 1)])


def num_copies(source: Source) -> Floats:
    """How often each channel is read, float32 [K]."""
    return np.bincount(source).astype(np.float32)


def shared_out(weight: Floats, source: Source) -> Floats:
    """Weights of channels [K, N] for their copies, each with its share: float32 [len(source), N]."""
    return (weight / num_copies(source)[:, None])[source]


def apply_split(group: Sequence[Linear], source: Source) -> None:
    """Let linears of one input read copies of its channels, with the weights shared out: the function is unchanged."""
    read_copies(group, source)
    for linear in group:
        wide = shared_out(array_of(linear.weight), source)
        linear.weight.const_value = ir.tensor(wide, name=linear.weight.name)
        linear.weight.shape = ir.Shape(wide.shape)


def read_copies(group: Sequence[Linear], source: Source, factors: Floats | None = None) -> None:
    """Put copies of channels before linears of one input, divided by factors [K] if there are any; weights stay."""
    value = group[0].input
    graph, producer = group[0].matmul.graph, value.producer()
    assert isinstance(graph, ir.Graph)
    extra = source[len(num_copies(source)) :]
    # Not one Gather for all: it copies element by element, and a Concat whole rows.
    gather = _node("Gather", [value, initializer(graph, f"{value.name}.source", extra)], len(extra), {"axis": -1})
    nodes = [gather, _node("Concat", [value, gather.outputs[0]], len(source), {"axis": -1})]
    if factors is not None:
        divisors = initializer(graph, f"{value.name}.factors", factors[source])
        nodes.append(_node("Div", [nodes[-1].outputs[0], divisors], len(source)))
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for linear in group:
        linear.matmul.replace_input_with(0, nodes[-1].outputs[0])


def _node(operator: str, inputs: Sequence[ir.Value], size: int, attributes: Mapping[str, int] | None = None) -> ir.Node:
    value = inputs[0]
    node = ir.node(operator, inputs, attributes, name=f"{value.name}/{operator}")
    output = node.outputs[0]
    output.name, output.type = f"{value.name}.{operator.lower()}", value.type
    if value.shape is not None:
        output.shape = ir.Shape([*value.shape[:-1], size])
    return node
