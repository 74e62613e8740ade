"""Products in float32 become products of bfloat16 of Piston's own kernels, where the build asks for that type.

Weights are stored rounded to bfloat16, in tiles of 16 outputs by 2 inputs; the kernel rounds what it multiplies them
with, and sums in float32. Everything else stays in float32.
"""

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.engines.lowering.kernels.linear import GELUS, is_tanh
from piston.engines.lowering.linear import linear_of
from piston.graph.pattern import MICROSOFT, emit, graph_of, is_weight, replace, sole_consumer, static_dims
from piston.graph.weight import derived_weight

OUTPUTS, INPUTS, DEPTH = 16, 2, 32  # of a tile; and what the depth of a product must be a multiple of
LINEARS = ("Bfloat16Linear", "GeluBfloat16Linear")


class KernelBfloat16Pass(KernelPass):
    """MatMul by a constant (+ Add of a bias) becomes Bfloat16Linear, and with a Gelu behind it GeluBfloat16Linear.

    Products of a depth or width that is no whole number of tiles stay.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        linear = linear_of(node)
        if linear is None or linear.quantized is not None or linear.constants[0].dtype != ir.DataType.FLOAT:
            return False
        depth, width = static_dims(linear.constants[0])
        return depth % DEPTH == 0 and width % OUTPUTS == 0 and linear.input.dtype == ir.DataType.FLOAT

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        linear = linear_of(node)
        assert linear is not None
        inputs: list[ir.Value | None] = [linear.input, tiles_of(node), linear.bias]
        last, gelu = linear.add or node, sole_consumer(linear.output)
        if gelu is not None and (gelu.domain, gelu.op_type) in GELUS | {(MICROSOFT, "BiasGelu")}:
            added = [value for value in gelu.inputs[1:] if value is not None]
            if not added or (linear.bias is None and is_weight(added[0], 1)):
                last, inputs[2] = gelu, added[0] if added else linear.bias
        if inputs[2] is None:
            inputs.pop()
        kind = LINEARS[last is gelu]
        attributes = {"tanh": int(is_tanh(last))} if last is gelu else {}
        made = emit(last, kind, inputs, attributes, domain=KERNELS, like=last.outputs[0])
        replace(last.outputs[0], made.outputs[0])


def tiles_of(matmul: ir.Node) -> ir.Value:
    """The weight [in, out] in bfloat16, as uint16 [out / 16, in / 2, 16 outputs by 2 inputs]."""
    weight = matmul.inputs[1]
    assert weight is not None
    depth, width = static_dims(weight)
    dims, dtype = [width // OUTPUTS, depth // INPUTS, OUTPUTS * INPUTS], ir.DataType.UINT16
    return derived_weight(graph_of(matmul), f"{weight.name}.bfloat16", [weight], dims, tiles, dtype=dtype)


def tiles(weight: np.ndarray) -> np.ndarray:
    """See `tiles_of`; rounded to nearest, halves to even."""
    depth, width = weight.shape
    bits = np.ascontiguousarray(weight, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x7FFF) + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    blocks = rounded.reshape(depth // INPUTS, INPUTS, width // OUTPUTS, OUTPUTS).transpose(2, 0, 3, 1)
    return np.ascontiguousarray(blocks).reshape(width // OUTPUTS, depth // INPUTS, OUTPUTS * INPUTS)
