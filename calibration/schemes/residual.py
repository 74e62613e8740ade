"""What a fine scale cannot hold is rounded once more, by a coarse one, and both are multiplied in integers.

An activation whose largest value is hundreds of times its usual ones has no good scale: a fine one cuts the largest
off, a coarse one leaves the others a few codes. Here it has two. x is rounded by the fine scale s, saturated, and what
is left, x - q(x), is rounded by ratio * s; the weight multiplies both, and the products are added:

    y = q(x; s) W + q(x - q(x; s); ratio * s) W

Two terms of a residual expansion (Yvinec et al., "REx: Data-Free Residual Quantization Error Expansion", NeurIPS 2023,
who expand weights). The second has codes only where the first saturates, a percent of them in a Llama's down_proj.
"""

import numpy as np
import onnx_ir as ir

from piston.calibration.graph.linears import Linear, sum_beside
from piston.graph.qdq import quantize_activation
from piston.graph.rounding import Floats

RATIOS = (7, 15, 31, 63)  # coarse scales, in fine ones


def fine_scale(largest: float, ratio: int) -> float:
    """The scale at which both terms together reach `largest`; with ratio 0, where there is one term, that term."""
    return (largest or 1.0) / 127 / (1 + ratio)


def round_steps(steps: Floats, ratio: int) -> Floats:
    """Values in fine steps to what their codes stand for, in fine steps again; works in place where ratio is 0."""
    if not ratio:
        return _saturated(steps, steps)
    fine = _saturated(steps, np.empty_like(steps))
    coarse = np.subtract(steps, fine, out=steps)
    coarse /= np.float32(ratio)
    return np.add(fine, np.multiply(_saturated(coarse, coarse), np.float32(ratio), out=coarse), out=fine)


def round_remainder(value: ir.Value, rounded: ir.Value, scale: float) -> ir.Value:
    """`value` less what its codes stand for, through a pair of its own; the one there is, if it was asked for before.

    Args:
        value: a float activation.
        rounded: the same through its fine pair.
        scale: the coarse one.
    """
    name = f"{value.name}.remainder"
    known = next((user.outputs[0] for user, _ in value.uses() if user.outputs[0].name == name), None)
    if known is not None:
        quantize = next(user for user, _ in known.uses())
        return next(user for user, _ in quantize.outputs[0].uses()).outputs[0]
    source = rounded.producer()
    assert source is not None
    assert isinstance(source.graph, ir.Graph)
    node = ir.node("Sub", [value, rounded], name=f"{value.name}/remainder/Sub")
    rest = node.outputs[0]
    rest.name, rest.type, rest.shape = name, value.type, value.shape
    source.graph.insert_after(source, node)
    return quantize_activation(source.graph, rest, scale)


def add_remainder(linear: Linear, value: ir.Value, scale: float) -> None:
    """Add the product of what the linear's input, which reads `value` through its pair, leaves over.

    Args:
        linear: quantized.
        value: the float activation.
        scale: the coarse one.
    """
    rest = round_remainder(value, linear.input, scale)
    sum_beside(linear, "remainder", rest, linear.matmul.inputs[1])


def _saturated(steps: Floats, out: Floats) -> Floats:
    return np.asarray(np.clip(np.rint(steps, out=out), -128, 127, out=out), np.float32)
