"""Linear layers with quantized weights and float activations become com.microsoft.MatMulNBits.

Always with accuracy_level 4, which rounds each block of activations to INT8 on the way: without it the products of 8
bits take a hundred times as long (ONNX Runtime 1.32, facts 6.3).
"""

import functools

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.linear import Linear, linear_of
from piston.graph.pattern import MICROSOFT, emit, graph_of, replace, static_dims, tidy
from piston.graph.qdq import QuantizedWeight
from piston.graph.weight import derived_weight

ACCURACY_LEVEL = 4
# One scale a channel is repeated over the first of these blocks that leaves no rest, or over the first: padding would
# be read and multiplied at every token. 64 was fastest at one token and least noisy but for 32 (1.32, two cores).
CHANNEL_BLOCKS = (64, 32)
BLOCKS = (16, 32, 64, 128, 256)  # what the kernel takes
BYTE, NIBBLE = 8, 4


class MatMulNBitsPass(ir.passes.InPlacePass):
    """MatMul(x, quantized weight) becomes MatMulNBits(x, packed codes, scales); an Add of a bias stays.

    Codes and scales keep their values; codes are counted from 0, [out, blocks, bytes], two 4-bit ones to a byte.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fused = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every linear layer that fits."""
        packed: dict[ir.Value, tuple[ir.Value, ir.Value]] = {}
        for matmul in [node for node in model.graph if node.op_type == "MatMul"]:
            linear = linear_of(matmul)
            if linear is None or linear.quantized is None or _block(linear.quantized) not in BLOCKS:
                continue
            _rewrite(linear, linear.quantized, packed)
            self.fused += 1
        if self.fused:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.fused))


def _block(weight: QuantizedWeight) -> int:
    if weight.block:
        return weight.block
    rows = static_dims(weight.codes)[0]
    return next((block for block in CHANNEL_BLOCKS if rows % block == 0), CHANNEL_BLOCKS[0])


def _rewrite(linear: Linear, weight: QuantizedWeight, packed: dict[ir.Value, tuple[ir.Value, ir.Value]]) -> None:
    rows, columns = static_dims(weight.codes)
    block = _block(weight)
    if weight.codes not in packed:
        packed[weight.codes] = _packed(graph_of(linear.matmul), weight, block)
    node = emit(
        linear.matmul,
        "MatMulNBits",
        [linear.input, *packed[weight.codes]],
        {"K": rows, "N": columns, "bits": weight.bits, "block_size": block, "accuracy_level": ACCURACY_LEVEL},
        domain=MICROSOFT,
        like=linear.matmul.outputs[0],
    )
    replace(linear.matmul.outputs[0], node.outputs[0])


def _packed(graph: ir.Graph, weight: QuantizedWeight, block: int) -> tuple[ir.Value, ir.Value]:
    rows, columns = static_dims(weight.codes)
    blocks = -(-rows // block)
    pack = functools.partial(packed_codes, bits=weight.bits, block=block)
    dims = [columns, blocks, block * weight.bits // BYTE]
    uint8 = ir.DataType.UINT8
    codes = derived_weight(graph, f"{weight.codes.name}.packed", [weight.codes], dims, pack, dtype=uint8)
    spread = functools.partial(_by_column, blocks=blocks)
    return codes, derived_weight(graph, f"{weight.scales.name}.packed", [weight.scales], [columns * blocks], spread)


def packed_codes(codes: NDArray[np.generic], bits: int, block: int) -> NDArray[np.uint8]:
    """Codes [in, out] as MatMulNBits reads them, the last block of each column filled with zeros."""
    rows, columns = codes.shape
    blocks = -(-rows // block)
    padded = np.zeros((columns, blocks * block), np.int8)
    padded[:, :rows] = codes.T
    counted = (padded.view(np.uint8) + np.uint8(1 << (bits - 1))).reshape(columns, blocks, block)
    if bits == BYTE:
        return counted
    return ((counted[..., 0::2] & 0xF) | (counted[..., 1::2] << NIBBLE)).astype(np.uint8)


def _by_column(scales: NDArray[np.float32], blocks: int) -> NDArray[np.float32]:
    """[out] or [blocks, out] as [out * blocks]."""
    spread = np.broadcast_to(scales, (blocks, scales.shape[-1]))
    return np.ascontiguousarray(spread.T).reshape(-1)
