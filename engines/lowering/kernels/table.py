"""An embedding in INT8 is read from the tiles that a tied lm_head reads: one copy, on disk and in memory."""

import numpy as np
import onnx_ir as ir

from piston.engines.lowering.kernels.blocks import BYTE, block_size, fits, tiled_weights, tiles
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.engines.lowering.kernels.linear import INPUTS, OUTPUTS
from piston.graph.pattern import emit, graph_of, int_attribute, replace, static_dims


class KernelTablePass(KernelPass):
    """GatherBlockQuantized of 8 bits and the Reshape behind it become BlockRows; to be run before KernelBlocksPass."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        gather = _gather_behind(node)
        if gather is None or len(gather.inputs) != 3:  # noqa: PLR2004
            return False
        plain = (("bits", BYTE), ("gather_axis", 0), ("quantize_axis", 2))
        if any(int_attribute(gather, name) != wanted for name, wanted in plain):
            return False
        codes, _, scales = gather.inputs
        constant = all(value is not None and value.is_initializer() for value in (codes, scales))
        shape, dims = static_dims(codes), static_dims(node.outputs[0])
        if not constant or len(shape) != 3 or shape[2] != block_size(gather) or shape[0] % OUTPUTS:  # noqa: PLR2004
            return False
        return block_size(gather) % INPUTS == 0 and len(dims) == 3 and dims[2] == shape[1] * shape[2]  # noqa: PLR2004

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        gather = _gather_behind(node)
        assert gather is not None
        codes, ids, scales = gather.inputs
        assert codes is not None
        assert scales is not None
        products = [use.node for use in codes.uses() if use.idx == 1 and fits(use.node)]
        head = next((product for product in products if _have_same(product.inputs[2], scales)), None)
        width, blocks, block = static_dims(codes)
        form = width, blocks * block, block, BYTE
        table = tiled_weights(graph_of(node), codes, scales, form) if head is None else tiles(head)
        made = emit(node, "BlockRows", [ids, *table], {"block_size": block}, domain=KERNELS, like=node.outputs[0])
        replace(node.outputs[0], made.outputs[0])


def _gather_behind(reshape: ir.Node) -> ir.Node | None:
    if reshape.op_type != "Reshape" or reshape.domain or reshape.inputs[0] is None:
        return None
    gather = reshape.inputs[0].producer()
    return gather if gather is not None and gather.op_type == "GatherBlockQuantized" else None


def _have_same(one: ir.Value | None, other: ir.Value) -> bool:
    """Whether two constants have the same elements, in whatever shape."""
    arrays = [
        value.const_value.numpy() for value in (one, other) if value is not None and value.const_value is not None
    ]
    return len(arrays) == 2 and np.array_equal(arrays[0].reshape(-1), arrays[1].reshape(-1))  # noqa: PLR2004
