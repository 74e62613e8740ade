"""Integer products become operators of Piston's own kernels, which take codes and give floats or the next codes.

The kernels read INT8 weights in tiles of 16 outputs by 4 inputs, so that one form serves the vector unit, which
decodes, and the tile registers, which prefill. They are stored so: nothing is packed, and so nothing copied, at load.
"""

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.gated import gated_products
from piston.engines.lowering.kernels.addends import ZERO_POINT, beside, codes_of, is_beside, ratio_of
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.graph.pattern import (
    MICROSOFT,
    array_of,
    constant,
    constants,
    dims_of,
    emit,
    float_attribute,
    graph_of,
    replace,
    sole_consumer,
    static_dims,
)
from piston.graph.weight import derived_weight

OUTPUTS, INPUTS, DEPTH = 16, 4, 64  # of a tile; and what the depth of a product must be a multiple of
BIAS = 6  # where MatMulIntegerToFloat has it
# Of the activation functions that are finished in a product, the kernel; QuickGelu is silu where alpha is 1.
ACTIVATIONS = {
    ("", "Gelu"): "GeluLinear",
    (MICROSOFT, "Gelu"): "GeluLinear",
    (MICROSOFT, "FastGelu"): "GeluLinear",
    (MICROSOFT, "QuickGelu"): "SiluLinear",
    ("", "Relu"): "ReluLinear",
}
GELUS = {key for key, kernel in ACTIVATIONS.items() if kernel == "GeluLinear"}


class KernelLinearPass(KernelPass):
    """MatMulIntegerToFloat becomes IntegerLinear.

    Sums in INT32 are the same; they are scaled in float as before. What inputs left in float give is added, and what
    the codes of a remainder give, of which the kernel looks for those that are not zero.
    Products of a depth or width that is no whole number of tiles stay.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _fits(node) and not is_beside(node)

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        inputs: list[ir.Value | None] = [node.inputs[0], tiled(node), offsets(node), scales(node)]
        bias = node.inputs[BIAS] if len(node.inputs) > BIAS else None
        added = beside(node)
        inputs += [bias, *(added.outliers or (None, None))]
        if added.remainder is not None:
            inputs += [added.remainder.inputs[0], ratio_of(added.remainder, node)]
        while inputs[-1] is None:
            inputs.pop()
        made = emit(added.total, "IntegerLinear", inputs, domain=KERNELS, like=node.outputs[0])
        made.name = (node.name or "").replace(node.op_type, made.op_type)
        replace(added.total.outputs[0], made.outputs[0])


class KernelGatedPass(KernelPass):
    """Two MatMulIntegerToFloat as silu(gate) * up become one GatedLinear, or GatedLinearCodes where codes are read."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        pair = gated_products(node, _fits)
        if pair is None or any(len(product.inputs) > BIAS - 1 for product in pair):
            return False
        return static_dims(pair[0].inputs[1]) == static_dims(pair[1].inputs[1])

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        pair = gated_products(node, _fits)
        assert pair is not None
        _rewrite_gated(node, *pair)


class KernelGeluPass(KernelPass):
    """MatMulIntegerToFloat -> Gelu becomes GeluLinear, or GeluLinearCodes where codes are read; likewise silu, relu."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        product = _gelu_product(node)
        return product is not None and _fits(product) and not is_beside(product) and beside(product).total is product

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        product = _gelu_product(node)
        assert product is not None
        bias = product.inputs[BIAS] if len(product.inputs) > BIAS else None
        inputs = [product.inputs[0], tiled(product), offsets(product), scales(product), bias]
        kind = ACTIVATIONS[node.domain, node.op_type]
        _emit_activated(node, kind, inputs, {"tanh": int(is_tanh(node))} if kind == "GeluLinear" else None)


def _gelu_product(node: ir.Node) -> ir.Node | None:
    """What gives the input of an activation function that reads nothing else, if nothing else reads it."""
    if (node.domain, node.op_type) not in ACTIVATIONS or any(value is not None for value in node.inputs[1:]):
        return None
    if node.op_type == "QuickGelu" and float_attribute(node, "alpha", 1.702) != 1.0:
        return None
    value = node.inputs[0]
    return value.producer() if value is not None and sole_consumer(value) is node else None


def is_tanh(gelu: ir.Node) -> bool:
    """Whether a Gelu is the approximation by the hyperbolic tangent."""
    return gelu.op_type == "FastGelu" or (
        "approximate" in gelu.attributes and gelu.attributes["approximate"].as_string() == "tanh"
    )


def _fits(node: ir.Node | None) -> bool:
    if node is None or node.op_type != "MatMulIntegerToFloat" or node.domain != MICROSOFT or len(node.inputs) < 5:  # noqa: PLR2004
        return False
    weight, zero_point = node.inputs[1], node.inputs[4]
    shape = static_dims(weight)
    has_no_weight_zero_point = len(node.inputs) == 5 or node.inputs[5] is None  # noqa: PLR2004
    return (
        weight is not None
        and weight.is_initializer()
        and weight.dtype == ir.DataType.INT8
        and zero_point is not None
        and zero_point.dtype == ir.DataType.UINT8
        and constants(zero_point) == [ZERO_POINT]
        and has_no_weight_zero_point
        and len(shape) == 2  # noqa: PLR2004
        and shape[0] % DEPTH == 0
        and shape[1] % OUTPUTS == 0
    )


def _rewrite_gated(mul: ir.Node, gate: ir.Node, up: ir.Node) -> None:
    weights = [tiled(node) for node in (gate, up)]
    columns = [offsets(node) for node in (gate, up)], [scales(node) for node in (gate, up)]
    graph = graph_of(mul)
    width, depth = static_dims(gate.inputs[1])[1], static_dims(gate.inputs[1])[0]
    name = f"{gate.inputs[1].name}+up"  # type: ignore[union-attr]
    weight = derived_weight(graph, f"{name}.tiles", weights, [2 * width // OUTPUTS, depth // INPUTS, 64], _alternating)
    offset, scale = (
        derived_weight(graph, f"{name}.{kind}", values, [2 * width], _alternating_columns)
        for kind, values in zip(("offset", "scale"), columns, strict=True)
    )
    _emit_activated(mul, "GatedLinear", [gate.inputs[0], weight, offset, scale])


def _emit_activated(
    last: ir.Node, kind: str, inputs: list[ir.Value | None], attributes: dict[str, int | float] | None = None
) -> None:
    """Put the operator `kind` in the place of `last`, or `kind`Codes where what it gives is made codes of."""
    codes = codes_of(last.outputs[0])
    if codes is None:
        while inputs[-1] is None:
            inputs.pop()
        node = emit(last, kind, inputs, attributes, domain=KERNELS, like=last.outputs[0])
        replace(last.outputs[0], node.outputs[0])
        return
    given = [codes.quantize, codes.gather, codes.coarse]
    asked = [None if node is None else node.inputs[1] for node in given]  # scale, channels, coarse scale
    while given[-1] is None:
        given.pop()
    node = emit(
        last,
        f"{kind}Codes",
        [*inputs, *asked[: len(given)]],
        attributes,
        domain=KERNELS,
        num_outputs=len(given),
        like=codes.quantize.outputs[0],
        dims=dims_of(last.outputs[0]),
    )
    for replaced, output in zip(given, node.outputs, strict=True):
        if replaced is None:
            output.name = ""
        else:
            replace(replaced.outputs[0], output)


def tiled(product: ir.Node) -> ir.Value:
    """The weight [in, out] as [out / 16, in / 4, 16 outputs by 4 inputs]."""
    weight = product.inputs[1]
    assert weight is not None
    depth, width = static_dims(weight)
    dims = [width // OUTPUTS, depth // INPUTS, OUTPUTS * INPUTS]
    return derived_weight(graph_of(product), f"{weight.name}.tiles", [weight], dims, _tiles)


def offsets(product: ir.Node) -> ir.Value:
    """What zero point 128 adds to each output's sum."""
    weight = product.inputs[1]
    assert weight is not None
    array = ZERO_POINT * array_of(weight).astype(np.int32).sum(axis=0, dtype=np.int32)
    return constant(graph_of(product), f"{weight.name}.offset", array)


def scales(product: ir.Node) -> ir.Value:
    """Activation scale times weight scale of each output."""
    weight, activation, columns = product.inputs[1], product.inputs[2], product.inputs[3]
    assert weight is not None
    assert activation is not None
    array = array_of(activation).reshape(-1) * np.broadcast_to(array_of(columns), (static_dims(weight)[1],))
    return constant(graph_of(product), f"{weight.name}.{activation.name}.scale", array.astype(np.float32))


def _tiles(weight: np.ndarray) -> np.ndarray:
    depth, width = weight.shape
    blocks = weight.reshape(depth // INPUTS, INPUTS, width // OUTPUTS, OUTPUTS).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(blocks).reshape(width // OUTPUTS, depth // INPUTS, OUTPUTS * INPUTS)


def _alternating(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.stack([gate, up], axis=1).reshape(-1, *gate.shape[1:])


def _alternating_columns(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return np.stack([gate.reshape(-1, OUTPUTS), up.reshape(-1, OUTPUTS)], axis=1).reshape(-1)
