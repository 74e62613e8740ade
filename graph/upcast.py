"""float16 and bfloat16 become float32: ONNX Runtime's CPU kernels know no bfloat16, and cast float16 at every node."""

from collections.abc import Collection

import onnx_ir as ir

from piston.graph.pattern import static_dims, tidy

NARROW = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
WIDE = ir.DataType.FLOAT


class Float32Pass(ir.passes.InPlacePass):
    """Weights, cache and activations keep the values they had, exactly; what is computed from them is rounded less.

    Weights are converted one at a time, while the model is saved.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Widen initializers, inputs, intermediate values and casts."""
        modified = upcast(model.graph, NARROW)
        casts = [node for node in model.graph if node.op_type == "Cast" and _dtypes(node) == (WIDE, WIDE)]
        for cast in casts:
            _bypass(cast)
        if casts:
            tidy(model)
        return ir.passes.PassResult(model, modified=modified or bool(casts))

    def ensures(self, model: ir.Model) -> None:
        """Nothing narrow is left."""
        values = [*model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs]
        if left := [value.name for value in values if value.dtype in NARROW]:
            raise ir.passes.PostconditionError(f"{left[0]} is not float32.")


def upcast(graph: ir.Graph, narrow: Collection[ir.DataType]) -> bool:
    """Let values, casts and constants of these types be float32, in place; whether there were any."""
    values = [*graph.initializers.values(), *graph.inputs, *(output for node in graph for output in node.outputs)]
    found = dict.fromkeys(value for value in values if value.dtype in narrow)
    for value in found:
        _upcast_value(value)
    changed = [node for node in graph if _upcast_attributes(node, narrow)]
    return bool(found or changed)


def _upcast_value(value: ir.Value) -> None:
    tensor = value.const_value
    value.type = ir.TensorType(WIDE)  # a new one: values may share theirs
    if tensor is None:
        return

    def evaluate() -> ir.TensorProtocol:
        return ir.tensor(tensor.numpy().astype("float32"), name=tensor.name)

    value.const_value = ir.LazyTensor(evaluate, dtype=WIDE, shape=ir.Shape(static_dims(value)), name=tensor.name)


def _upcast_attributes(node: ir.Node, narrow: Collection[ir.DataType]) -> bool:
    to, constant = node.attributes.get("to"), node.attributes.get("value")
    if to is not None and to.type == ir.AttributeType.INT and ir.DataType(to.as_int()) in narrow:
        node.attributes["to"] = ir.AttrInt64("to", int(WIDE))
        return True
    if constant is not None and constant.type == ir.AttributeType.TENSOR and constant.as_tensor().dtype in narrow:
        wide = ir.tensor(constant.as_tensor().numpy().astype("float32"))
        node.attributes["value"] = ir.AttrTensor("value", wide)
        return True
    return False


def _dtypes(cast: ir.Node) -> tuple[ir.DataType | None, ir.DataType | None]:
    source = cast.inputs[0]
    return None if source is None else source.dtype, cast.outputs[0].dtype


def _bypass(cast: ir.Node) -> None:
    """Let readers of a cast from float32 to float32 read its input; a graph output keeps its name."""
    source, result = cast.inputs[0], cast.outputs[0]
    assert source is not None
    if not result.is_graph_output():
        result.replace_all_uses_with(source)
    elif source.producer() is not None and not source.is_graph_output():
        name, result.name = result.name, None
        result.replace_all_uses_with(source, replace_graph_outputs=True)
        source.name = name
