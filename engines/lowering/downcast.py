"""A float32 graph becomes float16 or bfloat16, strongly typed: every conversion is a Cast that can be seen.

What loses most by rounding stays in float32: norms, softmax and the masks before it, powers and the statistics made of
them, and what is computed of integers alone (positions, distances, angles: 2,049 is no float16). Codes are made of the
widest activation there is and scales stay float32, as the compilers want them: QuantizeLinear reads either type, and
DequantizeLinear -> Cast -> MatMul is the pattern they turn into an integer product.
"""

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import is_state
from piston.core.errors import EngineError, ParityError
from piston.graph.pattern import static_dims, tidy

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
NUMPY = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
WIDE = ir.DataType.FLOAT
LARGEST = float(np.finfo(np.float16).max)
STATISTICS = {"Exp", "Log", "Pow", "Reciprocal", "ReduceMean", "ReduceSum", "ReduceL2", "Softmax", "Sqrt"}
NORMS = {"LayerNormalization", "RMSNormalization"}
KEPT = {"ConstantOfShape", "DequantizeLinear", "QuantizeLinear", "Range"}
STARTS = {"Cast", "ConstantOfShape", "Range", "Where"}  # that make floats of integers or truth values
POINTWISE = {"Add", "Clip", "Div", "Max", "Min", "Mul", "Neg", "Sub"}
# What positions and masks are computed with: of integers it gives numbers that no weight made.
OF_INTEGERS = POINTWISE | {
    "Abs",
    "Cast",
    "Ceil",
    "Concat",
    "Cos",
    "Exp",
    "Expand",
    "Floor",
    "Gather",
    "Identity",
    "Log",
    "MatMul",
    "Pow",
    "Reciprocal",
    "Reshape",
    "Sign",
    "Sin",
    "Slice",
    "Sqrt",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
    "Where",
}


class Float16RangeError(EngineError, ParityError):
    """A model needs values that float16 does not have; `what` says which. bfloat16 has the range of float32."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}, beyond float16; build with --dtype bf16.")
        self.what = what


class DowncastPass(ir.passes.InPlacePass):
    """Computes everything else in `dtype`; states become narrow, other inputs and outputs stay float32.

    Weights are converted one at a time, while the model is saved.

    Raises:
        Float16RangeError: a weight is beyond the range of float16.
    """

    def __init__(self, dtype: str) -> None:
        super().__init__()
        self.dtype = dtype
        self.type = TYPES[dtype]

    def requires(self, model: ir.Model) -> None:
        """The graph is in float32."""
        if narrow := [value.name for value in model.graph.inputs if value.dtype in TYPES.values()]:
            raise ir.passes.PreconditionError(f"{narrow[0]} is narrow already.")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Type every value, then cast where a node reads another type than it computes in."""
        graph = model.graph
        wide = _wide_nodes(graph)
        for value in graph.inputs:
            if value.dtype == WIDE and is_state(value.name):
                value.type = ir.TensorType(self.type)  # a new one: values may share theirs
        for node in list(graph):
            self._type_outputs(node, is_wide=node in wide)
        for node in list(graph):
            self._cast_inputs(graph, node, is_wide=node in wide)
        for output in list(graph.outputs):
            if not is_state(output.name) and output.dtype == self.type:
                _widen_output(graph, output)
        tidy(model)
        return ir.passes.PassResult(model, modified=True)

    def _type_outputs(self, node: ir.Node, *, is_wide: bool) -> None:
        for output in node.outputs:
            if output.dtype == WIDE and not is_wide:
                output.type = ir.TensorType(self.type)
        to = node.attributes.get("to") if node.op_type == "Cast" else None
        if to is not None and to.as_int() == WIDE and not is_wide:
            node.attributes["to"] = ir.AttrInt64("to", int(self.type))

    def _cast_inputs(self, graph: ir.Graph, node: ir.Node, *, is_wide: bool) -> None:
        wanted = WIDE if is_wide else self.type
        for index, value in enumerate(node.inputs):
            if value is None or value.dtype not in {WIDE, self.type} or value.dtype == wanted:
                continue
            if node.op_type == "QuantizeLinear" or (node.op_type == "Cast" and not is_wide):
                continue  # reads either
            node.replace_input_with(index, self._converted(graph, node, value, wanted))

    def _converted(self, graph: ir.Graph, before: ir.Node, value: ir.Value, wanted: ir.DataType) -> ir.Value:
        name = f"{value.name}.{'float32' if wanted == WIDE else self.dtype}"
        if value.is_initializer():
            if name not in graph.initializers:
                self._check_range(value)
                _weight(graph, name, value, wanted, self._convert)
            return graph.initializers[name]
        known = next((use.node for use in value.uses() if use.node.name == name), None)
        if known is None:
            known = ir.node("Cast", [value], {"to": int(wanted)}, name=name)
            known.outputs[0].name, known.outputs[0].shape = name, value.shape
            known.outputs[0].type = ir.TensorType(wanted)
            producer = value.producer()
            graph.insert_before(before, known) if producer is None else graph.insert_after(producer, known)
        return known.outputs[0]

    def _convert(self, array: np.ndarray) -> np.ndarray:
        return array.astype(NUMPY[self.dtype])

    def _check_range(self, value: ir.Value) -> None:
        tensor = value.const_value
        array = None if tensor is None or self.dtype != "float16" else tensor.numpy()
        largest = 0.0 if array is None or not array.size else float(np.abs(array).max())
        if largest > LARGEST:
            raise Float16RangeError(f"{value.name} reaches {largest:.3g}")


def _wide_nodes(graph: ir.Graph) -> set[ir.Node]:
    """The nodes that compute in float32, as the head of this file has them."""
    statistics: set[ir.Node] = set()
    of_integers: set[ir.Node] = set()
    masks: set[ir.Node] = set()
    for node in graph:
        sources = {value.producer() for value in node.inputs if value is not None}
        if node.op_type in STATISTICS or (node.op_type in POINTWISE and sources & statistics):
            statistics.add(node)
        if _is_of_integers(node, of_integers):
            of_integers.add(node)
        if node.op_type == "Softmax":
            masks |= _scores_before(node)
    return statistics | of_integers | masks | {node for node in graph if node.op_type in NORMS | KEPT}


def _is_of_integers(node: ir.Node, known: set[ir.Node]) -> bool:
    """Whether a node gives floats that are made of integers and constants: its inputs are, or it casts integers."""
    if node.op_type not in OF_INTEGERS | STARTS or node.domain or node.outputs[0].dtype != WIDE:
        return False
    floats = [value for value in node.inputs if value is not None and value.dtype == WIDE]
    computed = [value.producer() for value in floats if not value.is_initializer()]
    return all(source in known for source in computed) and (bool(computed) or node.op_type in STARTS)


def _scores_before(softmax: ir.Node) -> set[ir.Node]:
    """The nodes that scale, bias and mask what a softmax reads: what hides a key may be beyond float16."""
    found: set[ir.Node] = set()
    rest = [softmax]
    while rest:
        for value in rest.pop().inputs:
            node = None if value is None or value.dtype != WIDE else value.producer()
            if node is not None and node not in found and node.op_type in POINTWISE | {"Where"} and not node.domain:
                found.add(node)
                rest.append(node)
    return found


def _weight(
    graph: ir.Graph,
    name: str,
    source: ir.Value,
    dtype: ir.DataType,
    convert: Callable[[np.ndarray], np.ndarray],
) -> None:
    tensor, dims = source.const_value, ir.Shape(static_dims(source))
    assert tensor is not None

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(convert(tensor.numpy()), dtype=dtype, name=name)

    lazy = ir.LazyTensor(evaluate, dtype=dtype, shape=dims, name=name)
    value = ir.Value(name=name, type=ir.TensorType(dtype), shape=dims, const_value=lazy)
    graph.register_initializer(value)


def _widen_output(graph: ir.Graph, output: ir.Value) -> None:
    """Let a Cast to float32 take over the name and place of an output."""
    name, index = output.name, list(graph.outputs).index(output)
    cast = ir.node("Cast", [output], {"to": int(WIDE)}, name=f"{name}/Cast")
    output.name = f"{name}.narrow"
    graph.append(cast)
    wide = cast.outputs[0]
    wide.name, wide.shape, wide.type = name, output.shape, ir.TensorType(WIDE)
    graph.outputs[index] = wide
