"""Products of weights of 8 or 4 bits in blocks become those of Piston's own kernels.

Like ONNX Runtime's with accuracy level 4 they round each block of activations to INT8; unlike those, they read the
weights where they lie: nothing is packed, and so nothing copied, at load.
"""

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.gated import gated_products
from piston.engines.lowering.kernels.kernel_pass import KERNELS, KernelPass
from piston.engines.lowering.kernels.linear import GELUS, INPUTS, OUTPUTS, is_tanh
from piston.engines.lowering.matmul_nbits import ACCURACY_LEVEL
from piston.graph.pattern import MICROSOFT, array_of, emit, graph_of, int_attribute, replace, sole_consumer, static_dims
from piston.graph.weight import derived_weight

ROUNDING = (
    "BlockLinear",
    "BiasBlockLinear",
    "GeluBlockLinear",
    "TanhGeluBlockLinear",
    "GatedBlockLinear",
    "SplitBlockLinear",
    "SplitGatedBlockLinear",
)  # operators that round activations by blocks
NIBBLE, BYTE = 4, 8
BITS = "bits"  # of a weight in tiles, in what passes note about it
MOST_PARTS = 3
BIAS = 5  # where MatMulNBits has it


class KernelBlocksPass(KernelPass):
    """MatMulNBits of accuracy level 4 without zero points becomes (Bias)BlockLinear, up to three on one input one.

    Weights keep their codes and scales, and those that are multiplied together may differ in width: the input is
    rounded once for all of one block size. Depths, blocks and widths must be multiples of 16.
    """

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _fits_but_bias(node)

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        assert node.inputs[0] is not None
        readers = [use.node for use in node.inputs[0].uses() if use.idx == 0]
        beside = [
            reader for reader in readers if reader is not node and reader.outputs[0].uses() and _fits_but_bias(reader)
        ]
        alike = [
            reader
            for reader in beside
            if block_size(reader) == block_size(node) and (_bias(reader) is None) == (_bias(node) is None)
        ]
        parts = [node, *alike] if len(alike) < MOST_PARTS else [node]
        graph = graph_of(node)
        first = min(parts, key=list(graph).index) if len(parts) > 1 else node
        inputs = [
            node.inputs[0],
            *(value for part in parts for value in (*tiles(part), _bias(part)) if value is not None),
        ]
        size, kind = {"block_size": block_size(node)}, "BlockLinear" if _bias(node) is None else "BiasBlockLinear"
        made = emit(first, kind, inputs, size, domain=KERNELS, num_outputs=len(parts), like=node.outputs[0])
        for part, output in zip(parts, made.outputs, strict=True):
            replace(part.outputs[0], output)


class KernelGeluBlocksPass(KernelPass):
    """A product by blocks, its bias and a Gelu become GeluBlockLinear or TanhGeluBlockLinear."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        return _biased_product(node) is not None

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        found = _biased_product(node)
        assert found is not None
        product, bias = found
        inputs, size = [product.inputs[0], *tiles(product), bias], {"block_size": block_size(product)}
        kind = "TanhGeluBlockLinear" if is_tanh(node) else "GeluBlockLinear"
        made = emit(node, kind, inputs, size, domain=KERNELS, like=node.outputs[0])
        replace(node.outputs[0], made.outputs[0])


class KernelGatedBlocksPass(KernelPass):
    """Two products by blocks as silu(gate) * up become one GatedBlockLinear, whatever the width of each."""

    def fits(self, node: ir.Node) -> bool:
        """See KernelPass."""
        pair = gated_products(node, fits)
        return pair is not None and len({(block_size(one), int_attribute(one, "N")) for one in pair}) == 1

    def rewrite(self, node: ir.Node) -> None:
        """See KernelPass."""
        pair = gated_products(node, fits)
        assert pair is not None
        inputs = [pair[0].inputs[0], *(value for part in pair for value in tiles(part))]
        size = {"block_size": block_size(pair[0])}
        made = emit(node, "GatedBlockLinear", inputs, size, domain=KERNELS, like=node.outputs[0])
        replace(node.outputs[0], made.outputs[0])


def fits(node: ir.Node) -> bool:
    """Whether a node is a product by blocks of a form that the kernels take, without a bias."""
    return _fits_but_bias(node) and _bias(node) is None


def _bias(node: ir.Node) -> ir.Value | None:
    return node.inputs[BIAS] if len(node.inputs) > BIAS else None


def _biased_product(gelu: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    """The product that a Gelu alone reads, and its bias: its own, or the Gelu's."""
    is_gelu = (gelu.domain, gelu.op_type) in GELUS | {(MICROSOFT, "BiasGelu")}
    product = gelu.inputs[0].producer() if is_gelu and gelu.inputs[0] is not None else None
    if product is None or sole_consumer(product.outputs[0]) is not gelu or not _fits_but_bias(product):
        return None
    given = [value for value in (_bias(product), *gelu.inputs[1:]) if value is not None]
    is_whole = len(given) == 1 and given[0].is_initializer() and static_dims(given[0]) == [int_attribute(product, "N")]
    return (product, given[0]) if is_whole else None


def _fits_but_bias(node: ir.Node) -> bool:
    if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits") or any(
        value is not None for value in node.inputs[3:BIAS]
    ):
        return False
    bias = _bias(node)
    if any(value is not None for value in node.inputs[BIAS + 1 :]) or not (bias is None or bias.is_initializer()):
        return False
    depth, width = (int_attribute(node, name) for name in ("K", "N"))
    if int_attribute(node, "bits") not in (NIBBLE, BYTE) or int_attribute(node, "accuracy_level") != ACCURACY_LEVEL:
        return False
    constant = all(value is not None and value.is_initializer() for value in node.inputs[1:3])
    return constant and all(size % OUTPUTS == 0 for size in (depth, width, block_size(node)))


def block_size(node: ir.Node) -> int:
    """Inputs that share a scale."""
    return int_attribute(node, "block_size")


def tiles(node: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Codes and scales of a product as the kernels read them."""
    depth, width, bits = (int_attribute(node, name) for name in ("K", "N", "bits"))
    codes, scales = node.inputs[1:3]
    assert codes is not None
    assert scales is not None
    return tiled_weights(graph_of(node), codes, scales, (width, depth, block_size(node), bits))


def tiled_weights(
    graph: ir.Graph, codes: ir.Value, scales: ir.Value, form: tuple[int, int, int, int]
) -> tuple[ir.Value, ir.Value]:
    """Codes as [width / 16, depth / 4 or 8, 64] and scales as [width / 16, blocks, 16], each once for all readers.

    Where each output has one scale for all its blocks, as w8 has, scales are [width / 16, 1, 16]. `form` is width,
    depth, block and bits.
    """
    width, depth, block, bits = form
    count, blocks = width // OUTPUTS, -(-depth // block)

    def tiled(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
        whole = array.reshape(width, -1)
        if bits == NIBBLE:
            whole = np.stack([whole & 0xF, whole >> NIBBLE], axis=-1).reshape(width, -1)
        parts: NDArray[np.uint8] = (
            whole[:, :depth].reshape(count, OUTPUTS, depth // INPUTS, INPUTS).transpose(0, 2, 1, 3)
        )
        if bits == NIBBLE:
            parts = (parts[:, 0::2] | (parts[:, 1::2] << NIBBLE)).astype(np.uint8)
        return parts.reshape(count, -1, OUTPUTS * INPUTS)

    def by_tile(array: NDArray[np.float32]) -> NDArray[np.float32]:
        return array.reshape(count, OUTPUTS, blocks)[..., :stored].transpose(0, 2, 1)

    by_output = array_of(scales).reshape(width, blocks)
    stored = 1 if (by_output == by_output[:, :1]).all() else blocks
    names = f"{codes.name}.tiles", f"{scales.name}.tiles"
    if names[0] not in graph.initializers:
        dims = [count, depth * bits // 32, OUTPUTS * INPUTS]
        derived_weight(graph, names[0], [codes], dims, tiled).meta[BITS] = bits
    if names[1] not in graph.initializers:
        derived_weight(graph, names[1], [scales], [count, stored, OUTPUTS], by_tile)
    return graph.initializers[names[0]], graph.initializers[names[1]]
