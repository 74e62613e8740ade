"""2:4 sparse weights of Piston's own kernels are stored without their zeros.

Of the weights of 8 inputs by 16 outputs half are stored, and which input each is of, in two bits: 80 bytes instead of
128 for INT8, 48 instead of 64 for INT4.
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
EIGHT = 2 * INPUTS
PACKED = {BYTE: ROW + ROW // 4, NIBBLE: ROW // 2 + ROW // 4}  # bytes of a row: weights and inputs


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
    if not is_sparse(_weights(array_of(value), bits).reshape(-1, GROUP).T):
        return None
    tiles, rows, _ = static_dims(value)
    dims = [tiles, rows * INPUTS * BYTE // bits // EIGHT, PACKED[bits]]
    return derived_weight(graph, f"{value.name}.sparse", [value], dims, lambda array: packed_rows(array, bits))


def packed_rows(tiles: NDArray[Any], bits: int) -> NDArray[Any]:
    """Tiles of the kernels, [tiles, depth / 4 or 8, 64], of which of every four inputs two weights or more are zero.

    Returns: [tiles, depth / 8, 80] of 8 bits: of each output two weights of the first four of eight inputs and two of
    the next four, then the inputs that they are of: byte i has those of the weights i, i + 16, i + 32 and i + 48, from
    the lowest bits on. [tiles, depth / 8, 48] of 4 bits: the weights i and i + 32 in the halves of byte i, from 0 on.
    """
    weights = _weights(tiles, bits)
    weights = weights.reshape(len(weights), -1, 2, OUTPUTS, INPUTS)  # [tiles, depth / 8, fours, outputs, inputs]
    filled = _FILLED[np.packbits(weights != 0, axis=-1, bitorder="little")[..., 0]]
    stored = np.unpackbits(filled[..., None], axis=-1, count=INPUTS, bitorder="little").view(np.bool_)
    inputs = np.broadcast_to(np.arange(INPUTS, dtype=np.uint8), weights.shape)
    kept, places = (
        array[stored].reshape(*weights.shape[:-1], LEFT).swapaxes(2, 3).reshape(*weights.shape[:2], ROW)
        for array in (weights, inputs)
    )
    values: NDArray[Any] = kept.view(np.uint8)
    if bits == NIBBLE:
        values = values + np.uint8(1 << (NIBBLE - 1))
        values = values[..., : ROW // 2] | (values[..., ROW // 2 :] << NIBBLE)
    quarters = places.reshape(*places.shape[:2], 4, ROW // 4) << np.array([[0], [2], [4], [6]], np.uint8)
    packed = np.concatenate([values, np.bitwise_or.reduce(quarters, axis=2)], axis=-1)
    return packed.view(tiles.dtype)


def _weights(tiles: NDArray[Any], bits: int) -> NDArray[np.int8]:
    """Weights of tiles about zero, [tiles, depth / 4, 64]."""
    if tiles.dtype == np.int8:
        return tiles
    if bits == NIBBLE:
        tiles = np.stack([tiles & 0xF, tiles >> NIBBLE], axis=2).reshape(len(tiles), -1, ROW)
    return (tiles - np.uint8(1 << (bits - 1))).view(np.int8)


def _filled(four: int) -> int:
    """Four bits, of which those that are not set are set, from the lowest on, until two are."""
    while four.bit_count() < LEFT:
        four |= four + 1
    return four


_FILLED = np.array([_filled(four) for four in range(1 << INPUTS)], np.uint8)
