"""A quantized embedding and a tied, quantized lm_head read the same bytes: GatherBlockQuantized and MatMulNBits.

Without it ONNX Runtime would gather, widen and multiply in four nodes, and dequantize the whole table for the head. The
two kernels want the same codes, counted from 0, and the table is stored once.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.matmul_nbits import ACCURACY_LEVEL, BLOCKS
from piston.graph.pattern import (
    MICROSOFT,
    constant_ints,
    emit,
    graph_of,
    int_attribute,
    is_weight,
    producer,
    replace,
    static_dims,
    tidy,
)
from piston.graph.weight import derived_weight

RANK = 2
MIDDLE = 128
BITS = 8


@dataclass(frozen=True, slots=True)
class Rows:
    """A table in INT8: codes [rows, width], scales [rows, blocks]."""

    codes: ir.Value
    scales: ir.Value

    @property
    def block(self) -> int:
        """Values that share a scale."""
        return static_dims(self.codes)[1] // static_dims(self.scales)[1]


class Int8TablesPass(ir.passes.InPlacePass):
    """Rows gathered and dequantized become GatherBlockQuantized; MatMul by the transposed table MatMulNBits."""

    def __init__(self) -> None:
        super().__init__()
        self._packed: dict[ir.Value, ir.Value] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every reader of such a table that fits."""
        modified = False
        for node in list(model.graph):
            if node.graph is None or node.domain:
                continue
            if node.op_type == "Reshape" and (gathered := _gathered(node)) is not None:
                self._gather(node, *gathered)
            elif node.op_type == "MatMul" and (rows := _transposed(node)) is not None:
                self._product(node, rows)
            else:
                continue
            modified = True
        if modified:
            model.opset_imports[MICROSOFT] = 1
            tidy(model)
        return ir.passes.PassResult(model, modified=modified)

    def _codes(self, graph: ir.Graph, rows: Rows) -> ir.Value:
        """[rows, blocks, block] uint8, one for all readers."""
        if rows.codes not in self._packed:
            count, width = static_dims(rows.codes)
            dims = [count, width // rows.block, rows.block]
            self._packed[rows.codes] = derived_weight(
                graph,
                f"{rows.codes.name}.packed",
                [rows.codes],
                dims,
                partial(_counted, dims=dims),
                dtype=ir.DataType.UINT8,
            )
        return self._packed[rows.codes]

    def _gather(self, reshape: ir.Node, rows: Rows, ids: ir.Value) -> None:
        graph = graph_of(reshape)
        count, blocks = static_dims(rows.scales)
        scales = derived_weight(graph, f"{rows.scales.name}.column", [rows.scales], [count, blocks, 1], _column)
        attributes = {"gather_axis": 0, "quantize_axis": RANK, "block_size": rows.block, "bits": BITS}
        inputs = [self._codes(graph, rows), ids, scales]
        node = emit(reshape, "GatherBlockQuantized", inputs, attributes, domain=MICROSOFT)
        node.outputs[0].type = reshape.outputs[0].type
        shape = constant_ints(graph, 0, 0, static_dims(rows.codes)[1])
        merged = emit(reshape, "Reshape", [node.outputs[0], shape], like=reshape.outputs[0])
        replace(reshape.outputs[0], merged.outputs[0])

    def _product(self, matmul: ir.Node, rows: Rows) -> None:
        graph = graph_of(matmul)
        count, width = static_dims(rows.codes)
        flat = derived_weight(graph, f"{rows.scales.name}.packed", [rows.scales], [rows_of(rows)], _flat)
        attributes = {
            "K": width,
            "N": count,
            "bits": BITS,
            "block_size": rows.block,
            "accuracy_level": ACCURACY_LEVEL,
        }
        inputs = [matmul.inputs[0], self._codes(graph, rows), flat]
        node = emit(matmul, "MatMulNBits", inputs, attributes, domain=MICROSOFT, like=matmul.outputs[0])
        replace(matmul.outputs[0], node.outputs[0])


def rows_of(rows: Rows) -> int:
    """The number of its scales."""
    count, blocks = static_dims(rows.scales)
    return count * blocks


def _gathered(reshape: ir.Node) -> tuple[Rows, ir.Value] | None:
    """Reshape(Mul(Reshape(Cast(Gather(codes, ids))), Unsqueeze(Gather(scales, ids)))), its table and the ids."""
    product = producer(reshape.inputs[0], "Mul")
    if product is None:
        return None
    split, column = producer(product.inputs[0], "Reshape"), producer(product.inputs[1], "Unsqueeze")
    cast = None if split is None else producer(split.inputs[0], "Cast")
    codes = None if cast is None else producer(cast.inputs[0], "Gather")
    scales = None if column is None else producer(column.inputs[0], "Gather")
    if codes is None or scales is None or codes.inputs[1] is not scales.inputs[1] or codes.inputs[1] is None:
        return None
    rows = _rows(codes.inputs[0], scales.inputs[0])
    return None if rows is None else (rows, codes.inputs[1])


def _transposed(matmul: ir.Node) -> Rows | None:
    """MatMul(x, Transpose(DequantizeLinear(codes, scales)))."""
    transpose = producer(matmul.inputs[1], "Transpose")
    node = None if transpose is None else producer(transpose.inputs[0], "DequantizeLinear")
    if node is None or int_attribute(node, "axis", 1) not in (1, -1) or len(node.inputs) != RANK:
        return None
    rows = _rows(*node.inputs)
    return rows if rows is not None and int_attribute(node, "block_size") == rows.block else None


def _rows(codes: ir.Value | None, scales: ir.Value | None) -> Rows | None:
    if codes is None or scales is None or not is_weight(codes, RANK) or not is_weight(scales, RANK):
        return None
    rows = Rows(codes, scales)
    return rows if codes.dtype == ir.DataType.INT8 and rows.block in BLOCKS else None


def _counted(codes: NDArray[np.int8], dims: list[int]) -> NDArray[np.uint8]:
    """Codes counted from 0, in blocks."""
    return (codes.view(np.uint8) + np.uint8(MIDDLE)).reshape(dims)


def _column(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return scales[..., None]


def _flat(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    return scales.reshape(-1)
