"""Inputs that would leave the others of a linear few codes are multiplied in float, beside the integer product.

Dettmers et al., "LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale", NeurIPS 2022. Here calibration
finds the channels once and for all. In the integer product their weights are zero, so that it does not matter that
their activations saturate, and the other channels share a scale that is theirs.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.graph.folding import NORMS
from piston.calibration.graph.linears import Linear, sum_beside
from piston.core.errors import MisuseError
from piston.graph.pattern import initializer
from piston.graph.rounding import Floats, Grid, Outliers, Quantized, round_to_nearest

Channels = NDArray[np.int64]


def has_outliers(group: Sequence[Linear]) -> bool:
    """Whether what `group` reads lies within an MLP, behind its activation function.

    That is where single channels are a thousand times as large as the others: a product of two activations, or what
    nothing normalizes. What norms give is even once it is smoothed, and so are averages of values.
    """
    producer = group[0].input.producer()
    return producer is not None and producer.op_type not in (*NORMS, "Reshape") and not group[0].is_transposed


def num_outliers(asked: int, inputs: int) -> int:
    """Channels to leave in float, of so many; raises MisuseError where more than half are asked for."""
    if 2 * asked > inputs:
        raise MisuseError(f"--outliers {asked} is more than half of the {inputs} inputs of a linear.")
    return asked


def largest_channels(magnitudes: Floats, count: int) -> Channels:
    """The `count` largest of magnitudes [K], in the order of the channels."""
    return np.sort(np.argsort(-magnitudes, kind="stable")[:count]).astype(np.int64)


def round_others(weight: Floats, grid: Grid, channels: Channels) -> Quantized:
    """Weights [K, N] to nearest, those of `channels` in float."""
    if not len(channels):
        return round_to_nearest(weight, grid)
    others = weight.copy()
    others[channels] = 0
    rounded = round_to_nearest(others, grid)
    return Quantized(rounded.codes, rounded.scales, grid, Outliers(channels, weight[channels]))


def add_outliers(linear: Linear, outliers: Outliers) -> None:
    """Add Gather(input, channels) times their weights to what the linear gives, behind its bias; call it first.

    Linears of one input share the Gather.
    """
    value, graph = linear.input, linear.matmul.graph
    assert isinstance(graph, ir.Graph)
    name = f"{value.name}.outliers"
    readers = [user for user, _ in value.uses()]
    picked = next((user.outputs[0] for user in readers if user.outputs[0].name == name), None)
    if picked is None:
        channels = initializer(graph, f"{value.name}.channels", outliers.channels)
        node = ir.node("Gather", [value, channels], {"axis": -1}, name=f"{linear.name}/outliers/Gather")
        picked = node.outputs[0]
        picked.name, picked.type = name, value.type
        picked.shape = None if value.shape is None else ir.Shape([*value.shape[:-1], len(outliers.channels)])
        graph.insert_before(linear.matmul, node)
    weight = initializer(graph, f"{linear.name}.outliers.weight", outliers.weight)
    sum_beside(linear, "outliers", picked, weight)
