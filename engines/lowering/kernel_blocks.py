"""Products of weights of 8 or 4 bits in blocks, the lm_head's above all, become those of Piston's own kernels.

Like ONNX Runtime's with accuracy level 4 it rounds each block of activations to INT8; unlike that, it reads the weights
where they lie: nothing is packed, and so nothing copied, at load.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.kernel_linear import INPUTS, KERNELS, OUTPUTS
from piston.engines.lowering.matmul_nbits import ACCURACY_LEVEL
from piston.engines.lowering.pattern import MICROSOFT, emit, graph_of, int_attribute, replace, tidy
from piston.engines.lowering.weight import derived_weight

OPERATORS = {8: "BlockLinear", 4: "BlockLinear4"}
NIBBLE = 4


class KernelBlocksPass(ir.passes.InPlacePass):
    """MatMulNBits of accuracy level 4, without zero points or bias, becomes BlockLinear or BlockLinear4.

    Weights keep their codes and scales; depths, blocks and widths must be multiples of 16.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every product that fits."""
        for node in [node for node in model.graph if _fits(node)]:
            _rewrite(node)
            self.fused += 1
        tidy(model)
        model.opset_imports[KERNELS] = 1
        return ir.passes.PassResult(model, modified=bool(self.fused))


def _fits(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits") or any(value is not None for value in node.inputs[3:]):
        return False
    depth, width, block = (int_attribute(node, name) for name in ("K", "N", "block_size"))
    if int_attribute(node, "bits") not in OPERATORS or int_attribute(node, "accuracy_level") != ACCURACY_LEVEL:
        return False
    constant = all(value is not None and value.is_initializer() for value in node.inputs[1:3])
    return constant and all(size % OUTPUTS == 0 for size in (depth, width, block))


def _rewrite(node: ir.Node) -> None:
    depth, width, block, bits = (int_attribute(node, name) for name in ("K", "N", "block_size", "bits"))
    codes, scales = node.inputs[1:3]
    assert codes is not None
    assert scales is not None
    tiles, blocks = width // OUTPUTS, -(-depth // block)

    def tiled(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        whole = array.reshape(width, -1)
        if bits == NIBBLE:
            whole = np.stack([whole & 0xF, whole >> NIBBLE], axis=-1).reshape(width, -1)
        parts: NDArray[np.uint8] = (
            whole[:, :depth].reshape(tiles, OUTPUTS, depth // INPUTS, INPUTS).transpose(0, 2, 1, 3)
        )
        if bits == NIBBLE:
            parts = (parts[:, 0::2] | (parts[:, 1::2] << NIBBLE)).astype(np.uint8)
        return parts.reshape(tiles, -1, OUTPUTS * INPUTS)

    def by_tile(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array.reshape(tiles, OUTPUTS, blocks).transpose(0, 2, 1)

    graph = graph_of(node)
    weight = derived_weight(graph, f"{codes.name}.tiles", [codes], [tiles, depth * bits // 32, OUTPUTS * INPUTS], tiled)
    scale = derived_weight(graph, f"{scales.name}.tiles", [scales], [tiles, blocks, OUTPUTS], by_tile)
    inputs, size = [node.inputs[0], weight, scale], {"block_size": block}
    made = emit(node, OPERATORS[bits], inputs, size, domain=KERNELS, like=node.outputs[0])
    replace(node.outputs[0], made.outputs[0])
