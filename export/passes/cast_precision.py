"""A float32 graph becomes float16 or bfloat16: weights, activations, states; audio comes and logits leave as float32.

RMSNormalization and LayerNormalization still compute in float32 inside (stash_type 1), Attention as the backend does.
"""

import ml_dtypes
import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import is_state
from piston.core.errors import CheckpointError

TYPES = {"float16": ir.DataType.FLOAT16, "bfloat16": ir.DataType.BFLOAT16}
NUMPY_TYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


class CastPrecisionPass(ir.passes.InPlacePass):
    """Changes every float32 value; weights are converted one at a time, while they are saved.

    With `widen` the first output is cast to float32 again.

    Raises:
        CheckpointError: a weight is beyond the range of the type.
    """

    def __init__(self, dtype: str, *, widen: bool = True) -> None:
        super().__init__()
        self.dtype = dtype
        self.widen = widen

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Cast initializers, inputs and intermediate values."""
        graph, target = model.graph, TYPES[self.dtype]
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                self._check_range(value.const_value, value.name or "")
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT:
                value.const_value = self._converted(value.const_value, value.name or "")
                value.dtype = target
        audio = [value for value in graph.inputs if value.dtype == ir.DataType.FLOAT and not is_state(value.name)]
        states = [value for value in graph.inputs if is_state(value.name)]
        for value in (*states, *(output for node in graph for output in node.outputs)):
            if value.dtype == ir.DataType.FLOAT:
                value.dtype = target
        self._narrow_casts(graph)
        for value in audio:
            self._narrow_input(graph, value)
        if self.widen:
            self._widen_result(graph)
        return ir.passes.PassResult(model, modified=True)

    def _narrow_casts(self, graph: ir.Graph) -> None:
        for node in graph:
            to = node.attributes.get("to") if node.op_type == "Cast" else None
            if to is not None and to.as_int() == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", TYPES[self.dtype])

    def _converted(self, tensor: ir.TensorProtocol, name: str) -> ir.LazyTensor:
        numpy_type = NUMPY_TYPES[self.dtype]

        def convert() -> ir.TensorProtocol:
            return ir.Tensor(tensor.numpy().astype(numpy_type), name=name)

        return ir.LazyTensor(convert, dtype=TYPES[self.dtype], shape=ir.Shape(tensor.numpy().shape), name=name)

    def _check_range(self, tensor: ir.TensorProtocol, name: str) -> None:
        # Before the graph is saved: what a conversion raises while it is saved comes out wrapped in other errors.
        array = tensor.numpy()
        largest = float(np.abs(array).max()) if array.size else 0.0
        limit = ml_dtypes.finfo(NUMPY_TYPES[self.dtype]).max  # type: ignore[no-untyped-call]
        if largest > float(limit):
            wider = "--dtype bf16 or fp32" if self.dtype == "float16" else "--dtype fp32"
            raise CheckpointError(f"{name} reaches {largest:.3g}, beyond {self.dtype}; use {wider}.")

    def _narrow_input(self, graph: ir.Graph, value: ir.Value) -> None:
        """Cast an input, such as audio, behind it: who feeds it need not know the type of the weights."""
        narrowed = ir.node("Cast", [value], {"to": TYPES[self.dtype]}, name=f"step/Cast_{value.name}")
        output = narrowed.outputs[0]
        output.shape, output.dtype, output.name = value.shape, TYPES[self.dtype], f"{value.name}_narrow"
        for node, index in [use for use in value.uses() if use[0] is not narrowed]:
            node.replace_input_with(index, output)
        graph.insert_before(graph[0], narrowed)

    def _widen_result(self, graph: ir.Graph) -> None:
        result = graph.outputs[0]
        name = result.name
        widened = ir.node("Cast", [result], {"to": ir.DataType.FLOAT}, name=f"step/Cast_{name}")
        graph.append(widened)
        output = widened.outputs[0]
        output.shape, output.dtype = result.shape, ir.DataType.FLOAT
        graph.outputs[0] = output
        result.name, output.name = f"{name}_narrow", name
