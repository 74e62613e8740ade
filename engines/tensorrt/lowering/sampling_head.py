"""The next token is chosen in the graph: greedily, or drawn from the likeliest by a number that the host supplies.

The rules, and their order, are those of piston.runtime.sampling.processors: temperature, top_k with ties, top_p, and
the inverse of the distribution function over token ids. Only plain operators: no random
one would give the same token twice.
"""

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import is_past
from piston.engines.tensorrt.lowering.next_step import append, numbers

MAX_TOP_K = 64
LARGEST = float(np.finfo(np.float32).max)
TINY = float(np.finfo(np.float32).tiny)
FLOAT, INT64, BOOL = ir.DataType.FLOAT, ir.DataType.INT64, ir.DataType.BOOL
Value = ir.Value


class SamplingHeadPass(ir.passes.InPlacePass):
    """Adds the inputs temperature, top_k, top_p [batch] and uniforms [batch, capacity], and the output next.input_ids.

    It needs the value `positions` of NextStepPass. Token ids pass through float32, exact below 2**24.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity

    def requires(self, model: ir.Model) -> None:
        """Positions are there, and ids fit."""
        if not any(node.outputs[0].name == "positions" for node in model.graph):
            raise ir.passes.PreconditionError("There is no value named positions; run NextStepPass first.")
        if vocab_size(model.graph) >= 2**24:
            raise ir.passes.PreconditionError("Token ids beyond 2**24 are not exact in float32.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Append the head."""
        graph = model.graph
        logits = next(value for value in graph.outputs if value.name == "logits")
        batch, kept, vocab = logits.shape  # type: ignore[misc]
        given = {
            name: _input(graph, name, dtype, (batch, *dims))
            for name, dtype, dims in (
                ("temperature", FLOAT, ()),
                ("top_k", INT64, ()),
                ("top_p", FLOAT, ()),
                ("uniforms", FLOAT, (self.capacity,)),
            )
        }
        head = _Head(graph, (batch, kept), min(MAX_TOP_K, int(vocab)))  # type: ignore[arg-type]
        head.choose(logits, given)
        return ir.passes.PassResult(model, modified=True)


def vocab_size(graph: ir.Graph) -> int:
    """The last dimension of the logits."""
    logits = next(value for value in graph.outputs if value.name == "logits")
    assert logits.shape is not None
    return int(logits.shape[-1])  # type: ignore[arg-type]


class _Head:
    """Builds the nodes; values are [batch, k, num_candidates], likeliest first, unless said otherwise."""

    def __init__(self, graph: ir.Graph, rows: tuple[ir.SymbolicDim, ir.SymbolicDim], num_candidates: int) -> None:
        self.graph, self.rows, self.num = graph, rows, num_candidates

    def choose(self, logits: Value, given: dict[str, Value]) -> None:
        candidates, ids = self._top(logits)
        weights = self._warp(
            candidates, {name: self._per_row(value) for name, value in given.items() if name != "uniforms"}
        )
        positions = next(node.outputs[0] for node in self.graph if node.outputs[0].name == "positions")
        uniform = append(self.graph, "GatherElements", [given["uniforms"], positions], self.rows, {"axis": 1}, FLOAT)
        drawn = self._draw(weights, ids, self._unsqueezed(uniform, 2, (*self.rows, 1)))
        greedy = append(self.graph, "Gather", [ids, numbers(self.graph, "first", 0)], self.rows, {"axis": 2})
        warm = self._warm(given["temperature"])
        append(self.graph, "Where", [warm, drawn, greedy], self.rows, output="next.input_ids")

    def _top(self, logits: Value) -> tuple[Value, Value]:
        dims = (*self.rows, self.num)
        count = numbers(self.graph, "num.candidates", [self.num])
        node = ir.node("TopK", [logits, count], {"axis": -1}, num_outputs=2, name="next/TopK")
        self.graph.append(node)
        for value, name, dtype in zip(node.outputs, ("candidates", "ids"), (FLOAT, INT64), strict=True):
            value.name, value.shape, value.type = f"next/{name}", ir.Shape(dims), ir.TensorType(dtype)
        return node.outputs[0], node.outputs[1]

    def _warp(self, candidates: Value, given: dict[str, Value]) -> Value:
        """Weights, 0 for what the options rule out."""
        tiny, dims = self._float("tiny", TINY), (self.rows[0], 1, 1)
        divisor = append(self.graph, "Max", [given["temperature"], tiny], dims, dtype=FLOAT)
        scaled = self._do("Div", [self._do("Sub", [candidates, self._reduce("ReduceMax", candidates)]), divisor])
        rank = numbers(self.graph, "candidate.rank", np.arange(self.num))
        among = self._do("Less", [rank, given["top_k"]], dtype=BOOL)
        kth = self._reduce("ReduceMin", self._do("Where", [among, scaled, self._float("largest", LARGEST)]))
        weights = self._kept(self._do("GreaterOrEqual", [scaled, kth], dtype=BOOL), self._do("Exp", [scaled]))
        share = self._do("Div", [weights, self._reduce("ReduceSum", weights)])
        before = append(
            self.graph,
            "CumSum",
            [share, numbers(self.graph, "axis.2", 2)],
            (*self.rows, self.num),
            {"exclusive": 1},
            FLOAT,
        )
        return self._kept(self._do("Less", [before, given["top_p"]], dtype=BOOL), weights)

    def _draw(self, weights: Value, ids: Value, uniform: Value) -> Value:
        """[batch, k]: the lowest id at which the distribution function, summed by id, exceeds the uniform number."""
        square = (*self.rows, self.num, self.num)
        row, column = (self._unsqueezed(ids, 3 - axis, dims, INT64) for axis, dims in ((0, square), (1, square)))
        not_after = append(self.graph, "LessOrEqual", [column, row], square, dtype=BOOL)
        spread = self._unsqueezed(weights, 2, square)
        summed = append(self.graph, "Where", [not_after, spread, self._float("zero", 0)], square, dtype=FLOAT)
        axes = numbers(self.graph, "axes.3", [3])
        below = append(self.graph, "ReduceSum", [summed, axes], (*self.rows, self.num), {"keepdims": 0}, FLOAT)
        point = self._do("Mul", [uniform, self._reduce("ReduceMax", below)], last=1)
        beyond = self._do("Greater", [below, point], dtype=BOOL)
        possible = self._do("Greater", [weights, self._float("zero", 0)], dtype=BOOL)
        eligible = self._do("And", [beyond, possible], dtype=BOOL)
        as_floats = append(self.graph, "Cast", [ids], (*self.rows, self.num), {"to": int(FLOAT)}, FLOAT)
        left = self._do("Where", [eligible, as_floats, self._float("largest", LARGEST)])
        axes = numbers(self.graph, "axes.2", [2])
        lowest = append(self.graph, "ReduceMin", [left, axes], self.rows, {"keepdims": 0}, FLOAT)
        return append(self.graph, "Cast", [lowest], self.rows, {"to": int(INT64)})

    def _warm(self, temperature: Value) -> Value:
        batch = self.rows[0]
        warm = append(self.graph, "Greater", [temperature, self._float("zero", 0)], (batch,), dtype=BOOL)
        return self._unsqueezed(warm, 1, (batch, 1), BOOL)

    def _kept(self, condition: Value, weights: Value) -> Value:
        return self._do("Where", [condition, weights, self._float("zero", 0)])

    def _per_row(self, value: Value) -> Value:
        axes = numbers(self.graph, "axes.1_2", [1, 2])
        assert value.dtype is not None
        return append(self.graph, "Unsqueeze", [value, axes], (self.rows[0], 1, 1), dtype=value.dtype)

    def _unsqueezed(
        self, value: Value, axis: int, dims: tuple[int | ir.SymbolicDim, ...], dtype: ir.DataType = FLOAT
    ) -> Value:
        dims = tuple(1 if index == axis else dim for index, dim in enumerate(dims))
        return append(self.graph, "Unsqueeze", [value, numbers(self.graph, f"axes.{axis}", [axis])], dims, dtype=dtype)

    def _do(self, op_type: str, inputs: list[Value | None], *, last: int = 0, dtype: ir.DataType = FLOAT) -> Value:
        return append(self.graph, op_type, inputs, (*self.rows, last or self.num), dtype=dtype)

    def _reduce(self, op_type: str, value: Value) -> Value:
        return append(self.graph, op_type, [value, numbers(self.graph, "axes.2", [2])], (*self.rows, 1), dtype=FLOAT)

    def _float(self, name: str, value: float) -> Value:
        return numbers(self.graph, f"{name}.float32", value, np.float32)


def _input(graph: ir.Graph, name: str, dtype: ir.DataType, dims: tuple[int | str | ir.SymbolicDim, ...]) -> Value:
    value = Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape(dims))
    # Before the caches, so that small inputs come first.
    place = next((i for i, item in enumerate(graph.inputs) if is_past(item.name)), len(graph.inputs))
    graph.inputs.insert(place, value)
    return value
