"""silu(gate) * up of two products of one input, as ONNX Runtime's optimizer leaves it."""

from collections.abc import Callable

import onnx_ir as ir

from piston.graph.pattern import float_attribute, sole_consumer


def gated_products(mul: ir.Node, fits: Callable[[ir.Node], bool]) -> tuple[ir.Node, ir.Node] | None:
    """Gate's and up's products, if `mul` is silu(gate) * up, nothing else reads them, and both fit."""
    if mul.op_type != "Mul" or mul.domain:
        return None
    for gate, up in (mul.inputs, mul.inputs[::-1]):
        silu = None if gate is None else gate.producer()
        if silu is None or silu.op_type != "QuickGelu" or float_attribute(silu, "alpha", 1.702) != 1.0:
            continue
        first, second = (None if value is None else value.producer() for value in (silu.inputs[0], up))
        if first is None or second is None or not (fits(first) and fits(second)):
            continue
        alone = all(sole_consumer(node.outputs[0]) is not None for node in (first, second, silu))
        if alone and first.inputs[0] is second.inputs[0]:
            return first, second
    return None
