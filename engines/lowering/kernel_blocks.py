"""Products of 8-bit weights in blocks, the lm_head's above all, become the one of Piston's own kernels.

Like ONNX Runtime's with accuracy level 4 it rounds each block of activations to INT8; unlike that, it reads the weights
where they lie: nothing is packed, and so nothing copied, at load.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.kernel_linear import INPUTS, KERNELS, OUTPUTS
from piston.engines.lowering.pattern import MICROSOFT, emit, graph_of, int_attribute, replace, tidy
from piston.engines.lowering.weight import derived_weight

BITS = 8


class KernelBlocksPass(ir.passes.InPlacePass):
    """MatMulNBits of 8 bits, accuracy level 4, without zero points or bias, becomes BlockLinear.

    Weights keep their codes and scales; blocks must be whole, and widths multiples of 16.
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
    constant = all(value is not None and value.is_initializer() for value in node.inputs[1:3])
    whole = depth % block == 0 and block % OUTPUTS == 0 and width % OUTPUTS == 0
    return constant and whole and int_attribute(node, "bits") == BITS and int_attribute(node, "accuracy_level") == 4  # noqa: PLR2004


def _rewrite(node: ir.Node) -> None:
    depth, width, block = (int_attribute(node, name) for name in ("K", "N", "block_size"))
    codes, scales = node.inputs[1:3]
    assert codes is not None
    assert scales is not None
    tiles, blocks = width // OUTPUTS, depth // block

    def tiled(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return array.reshape(tiles, OUTPUTS, depth // INPUTS, INPUTS).transpose(0, 2, 1, 3).reshape(tiles, -1, 64)

    def by_tile(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array.reshape(tiles, OUTPUTS, blocks).transpose(0, 2, 1)

    graph = graph_of(node)
    weight = derived_weight(graph, f"{codes.name}.tiles", [codes], [tiles, depth // INPUTS, 64], tiled)
    scale = derived_weight(graph, f"{scales.name}.tiles", [scales], [tiles, blocks, OUTPUTS], by_tile)
    made = emit(node, "BlockLinear", [node.inputs[0], weight, scale], domain=KERNELS, like=node.outputs[0])
    replace(node.outputs[0], made.outputs[0])
