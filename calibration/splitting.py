"""Large inputs of linears split: a channel is divided by a whole number and read as often, with the same weights.

Zhao et al., "Improving Neural Network Quantization without Retraining using Outlier Channel Splitting", ICML 2019. The
sum is the same. A kernel that rounds activations in blocks no longer spends its codes on a few channels, and what the
rounding of one copy's weight gets wrong another's makes up for: the channel has weights of more bits.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.linears import Linear
from piston.calibration.qdq import initializer
from piston.calibration.rounding import Floats

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


def added_up(weight: Floats, source: Source) -> Floats:
    """Weights of copies [len(source), N] for their channels: float32 [K, N]."""
    whole = weight[: source.max() + 1].copy()
    np.add.at(whole, source[len(whole) :], weight[len(whole) :])
    return whole


def apply_split(group: Sequence[Linear], source: Source) -> None:
    """Let linears of one input read copies of its channels, with the weights shared out: the function is unchanged."""
    value = group[0].input
    node, graph = value.producer(), group[0].matmul.graph
    assert node is not None
    assert isinstance(graph, ir.Graph)
    copies = ir.node(
        "Gather", [value, initializer(graph, f"{value.name}.source", source)], {"axis": -1}, name=f"{value.name}/Gather"
    )
    output = copies.outputs[0]
    output.name, output.type = f"{value.name}.split", value.type
    if value.shape is not None:
        output.shape = ir.Shape([*value.shape[:-1], len(source)])
    graph.insert_after(node, copies)
    for linear in group:
        linear.matmul.replace_input_with(0, output)
        assert linear.weight.const_value is not None
        wide = shared_out(linear.weight.const_value.numpy(), source)
        linear.weight.const_value = ir.tensor(wide, name=linear.weight.name)
        linear.weight.shape = ir.Shape(wide.shape)
