"""The two large tables at the ends of a model in INT8: the embedding and the lm_head, one and the same where tied.

Blocks of values share a scale. The embedding gathers codes and scales of its tokens and multiplies only those; a
DequantizeLinear of the whole table would run over all of it at every step. The head is a weight like any other.
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.graph.linears import Linear
from piston.graph.pattern import array_of, initializer
from piston.graph.rounding import Floats, Grid, round_to_nearest

MATRIX = 2  # dimensions
GATHER = "Gather"


@dataclass(frozen=True, slots=True)
class Table:
    """Codes int8 [rows, width] and scales float32 [rows, blocks]."""

    codes: ir.Value
    scales: ir.Value
    block: int


class QuantizeTablesPass(ir.passes.InPlacePass):
    """Replaces the table of embeddings, and the head's matrix, by codes and scales.

    Args:
        embedding: what Gather reads by token ids.
        head: the linear that makes the logits, or None to leave it as it is.
        block: values that share a scale.
    """

    def __init__(self, *, embedding: bool, head: Linear | None, block: int) -> None:
        super().__init__()
        self.embedding = embedding
        self.head = head
        self.block = block

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite what was asked for."""
        done: dict[str, Table] = {}
        gather = embedding_of(model.graph) if self.embedding else None
        if gather is not None:
            _gather_codes(model.graph, gather, self._table(model.graph, gather.inputs[0], done))
        if self.head is not None:
            self._dequantize_head(model.graph, self.head, done)
        for name in list(model.graph.initializers):
            if name in done and not model.graph.initializers[name].uses():
                del model.graph.initializers[name]
        return ir.passes.PassResult(model, modified=bool(done))

    def _table(self, graph: ir.Graph, value: ir.Value | None, done: dict[str, Table]) -> Table:
        """Codes of a float table [rows, width]; the same for all who ask for the same."""
        assert value is not None
        name = value.name or ""
        if name not in done:
            codes, scales, block = round_rows(np.asarray(array_of(value), np.float32), self.block)
            made = (initializer(graph, f"{name}.codes", codes), initializer(graph, f"{name}.scales", scales))
            done[name] = Table(*made, block)
        return done[name]

    def _dequantize_head(self, graph: ir.Graph, head: Linear, done: dict[str, Table]) -> None:
        """A transposed head reads rows of the table, in blocks along each; any other one columns."""
        weight, name = head.weight, head.weight.name or ""
        first = head.matmul
        if head.is_transposed:
            transpose = head.matmul.inputs[1]
            assert transpose is not None
            node = transpose.producer()
            assert node is not None
            table = self._table(graph, weight, done)
            dims, codes, scales, block, axis = weight.shape, table.codes, table.scales, table.block, 1
            first = node
        else:
            rounded = round_to_nearest(np.asarray(array_of(weight), np.float32), Grid(8, self.block))
            codes = initializer(graph, f"{name}.codes", rounded.codes)
            scales = initializer(graph, f"{name}.scales", rounded.scales)
            dims, block, axis = weight.shape, self.block, 0
            done[name] = Table(codes, scales, block)
        assert dims is not None
        value = _emit(first, "DequantizeLinear", [codes, scales], tuple(dims), axis=axis, block_size=block)
        value.name = f"{name}.dequantized"
        place = next(index for index, item in enumerate(first.inputs) if item is weight)
        first.replace_input_with(place, value)


def embedding_of(graph: ir.Graph) -> ir.Node | None:
    """The Gather of the tokens' rows from a float table."""
    for node in graph:
        table, ids = (*node.inputs, None, None)[:2]
        if node.op_type == GATHER and ids is not None and ids.name == "input_ids" and _is_table(table):
            return node
    return None


def _is_table(value: ir.Value | None) -> bool:
    is_constant = value is not None and value.is_initializer() and value.const_value is not None
    return is_constant and value is not None and value.dtype == ir.DataType.FLOAT and len(value.shape or ()) == MATRIX


def round_rows(array: Floats, wanted: int) -> tuple[NDArray[np.int8], Floats, int]:
    """Codes [rows, width], scales [rows, blocks] and the block: as wanted, half of that, or the whole width.

    The largest of these that leaves no rest.
    """
    width = array.shape[1]
    block = next((size for size in (wanted, wanted // 2) if width % size == 0), width)
    rounded = round_to_nearest(np.ascontiguousarray(array.T), Grid(8, 0 if block == width else block))
    return np.ascontiguousarray(rounded.codes.T), np.ascontiguousarray(rounded.scales.T), block


def _gather_codes(graph: ir.Graph, gather: ir.Node, table: Table) -> None:
    """Gather -> Cast -> blocks times their scales -> rows again."""
    output, ids = gather.outputs[0], gather.inputs[1]
    assert output.shape is not None
    batch, seq, width = output.shape
    name, blocks = output.name, table.scales.shape
    assert blocks is not None
    count = blocks[1]
    assert isinstance(count, int)
    assert isinstance(width, int)
    in_blocks = (batch, seq, count, table.block)
    codes = _emit(gather, GATHER, [table.codes, ids], (batch, seq, width), ir.DataType.INT8, axis=0)
    wide = _emit(gather, "Cast", [codes], (batch, seq, width), to=int(ir.DataType.FLOAT))
    split = _emit(gather, "Reshape", [wide, _ints(graph, f"{name}.blocks", 0, 0, count, table.block)], in_blocks)
    scales = _emit(gather, GATHER, [table.scales, ids], (batch, seq, count), axis=0)
    column = _emit(gather, "Unsqueeze", [scales, _ints(graph, f"{name}.last", -1)], (batch, seq, count, 1))
    product = _emit(gather, "Mul", [split, column], in_blocks)
    rows = _emit(gather, "Reshape", [product, _ints(graph, f"{name}.rows", 0, 0, width)], (batch, seq, width))
    output.replace_all_uses_with(rows, replace_graph_outputs=True)
    graph.remove(gather, safe=True)
    rows.name = name


def _emit(
    before: ir.Node,
    op_type: str,
    inputs: list[ir.Value | None],
    dims: tuple[object, ...],
    dtype: ir.DataType = ir.DataType.FLOAT,
    **attributes: int,
) -> ir.Value:
    stem = (before.name or op_type).rpartition("/")[0]
    node = ir.node(op_type, inputs, attributes, name=f"{stem}/{op_type}.{len(before.graph or ())}")
    output = node.outputs[0]
    output.name, output.shape, output.type = f"{node.name}.output", ir.Shape(dims), ir.TensorType(dtype)  # type: ignore[arg-type]
    graph = before.graph
    assert isinstance(graph, ir.Graph)
    graph.insert_before(before, node)
    return output


def _ints(graph: ir.Graph, name: str, *values: int) -> ir.Value:
    return initializer(graph, name, np.array(values, np.int64))
