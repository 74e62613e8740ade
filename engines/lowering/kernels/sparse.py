"""2:4 sparse weights of Piston's own kernels are stored without their zeros.

A row of a tile is 64 weights, 4 inputs by 16 outputs. Of a sparse one a mask of 64 bits and 32 weights are stored: 40
bytes instead of 64 for INT8. Two such rows of INT4 are two masks and 32 bytes: 48 instead of 64.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.kernels.blocks import BITS, BYTE, NIBBLE
from piston.engines.lowering.kernels.kernel_pass import KERNELS
from piston.engines.lowering.kernels.linear import INPUTS, OUTPUTS
from piston.graph.pattern import array_of, static_dims, tidy
from piston.graph.sparsity import GROUP, LEFT, is_sparse
from piston.graph.weight import derived_weight

ROW, RANK = OUTPUTS * INPUTS, 3
MASK = ROW // 8  # bytes
PACKED = {BYTE: MASK + ROW // 2, NIBBLE: 2 * MASK + ROW // 2}  # bytes of a row


class KernelSparsePass(ir.passes.InPlacePass):
    """Packs every weight of a linear layer that is 2:4 sparse along its inputs; to be run after all other passes.

    A table that rows are read from (BlockRows) stays, and so does the lm_head that shares it. `packed` counts layers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.packed = 0

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the weights, each once for all readers."""
        nodes = [node for node in model.graph if node.domain == KERNELS]
        tables = {value for node in nodes if node.op_type == "BlockRows" for value in node.inputs}
        packed: dict[ir.Value, ir.Value | None] = {}
        for node in nodes:
            for index, value in enumerate(node.inputs):
                if value is None or value in tables or not _are_tiles(value):
                    continue
                if value not in packed:
                    packed[value] = _packed(model.graph, value)
                    is_pair = node.op_type.startswith("GatedLinear")  # gate and up in one weight
                    self.packed += 0 if packed[value] is None else 1 + is_pair
                if packed[value] is not None:
                    node.replace_input_with(index, packed[value])
        tidy(model)
        return ir.passes.PassResult(model, modified=bool(self.packed))


def _are_tiles(value: ir.Value) -> bool:
    dims, is_byte = static_dims(value), value.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return value.is_initializer() and is_byte and len(dims) == RANK and dims[-1] == ROW


def _packed(graph: ir.Graph, value: ir.Value) -> ir.Value | None:
    """The weight without its zeros, or None where it is dense."""
    bits = value.meta.get(BITS, BYTE)
    zero = 0 if value.dtype == ir.DataType.INT8 else 1 << (bits - 1)
    if not all(is_sparse((rows != zero).reshape(-1, GROUP).T) for rows in _rows(array_of(value), bits)):
        return None
    dims = [*static_dims(value)[:-1], PACKED[bits]]
    return derived_weight(graph, f"{value.name}.sparse", [value], dims, lambda array: packed_rows(array, bits, zero))


def packed_rows(tiles: NDArray[Any], bits: int, zero: int) -> NDArray[Any]:
    """Tiles [.., 64], of which of every four weights two or more are `zero`, as masks and the other weights.

    Returns: [.., 40] of 8 bits: 64 bits in order, the lowest first, then 32 weights. [.., 48] of 4 bits: the same of
    the low halves of bytes and of the high ones, masks first, and weights in the halves of 32 bytes.
    """
    parts = [_without_zeros(rows, zero) for rows in _rows(tiles, bits)]
    masks, weights = [mask for mask, _ in parts], [weight.view(np.uint8) for _, weight in parts]
    values = weights[0] if bits == BYTE else weights[0] | (weights[1] << NIBBLE)
    return np.concatenate([*masks, values], axis=-1, dtype=np.uint8).view(tiles.dtype)


def _rows(tiles: NDArray[Any], bits: int) -> list[NDArray[Any]]:
    return [tiles] if bits == BYTE else [tiles & 0xF, tiles >> NIBBLE]


def _without_zeros(weights: NDArray[Any], zero: int) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Masks [.., 8] and weights [.., 32], two of every four: zeros too, where fewer are not zero."""
    masks = _FILLED[np.packbits(weights != zero, axis=-1, bitorder="little")]
    stored = np.unpackbits(masks, axis=-1, bitorder="little").view(np.bool_)
    return masks, weights[stored].reshape(*weights.shape[:-1], ROW // 2)


def _filled(four: int) -> int:
    """Four bits, of which zeros from the lowest on are set until two are set."""
    while four.bit_count() < LEFT:
        four |= ~four & (four + 1)
    return four


_FILLED: NDArray[Any] = np.array([_filled(byte & 0xF) | _filled(byte >> 4) << 4 for byte in range(256)], np.uint8)
