"""What may stand in a file for the compiler, and what must have come of it after parsing.

TensorRT's parser ignores attributes and inputs that it does not know without a word, so the file is held to a list.
"""

from typing import Any

import onnx_ir as ir

from piston.core.errors import EngineError
from piston.engines.tensorrt.lowering.trt_attention import ATTENTION, DECOMPOSABLE, DOMAIN

NO_ATTRIBUTES = (
    "Abs Add And Ceil Clip Cos Div Equal Erf Exp Expand Floor Greater GreaterOrEqual Identity Less LessOrEqual Log "
    "MatMul Max Min Mul Neg Not Or Pow Range Reciprocal Relu Sigmoid Sign Sin Slice Softplus Sqrt Squeeze Sub Tanh "
    "Tile Unsqueeze Where"
)
ALLOWED: dict[str, set[str]] = {
    **{name: set() for name in NO_ATTRIBUTES.split()},
    "Cast": {"to"},
    "Concat": {"axis"},
    "ConstantOfShape": {"value"},
    "Conv": {"auto_pad", "dilations", "group", "kernel_shape", "pads", "strides"},
    "CumSum": {"exclusive", "reverse"},
    "DequantizeLinear": {"axis", "block_size"},
    "Gather": {"axis"},
    "GatherElements": {"axis"},
    "GatherND": {"batch_dims"},
    "Gelu": {"approximate"},
    "LayerNormalization": {"axis", "epsilon", "stash_type"},
    "Elu": {"alpha"},
    "QuantizeLinear": {"axis"},
    "RMSNormalization": {"axis", "epsilon", "stash_type"},
    "ReduceL2": {"keepdims", "noop_with_empty_axes"},
    "ReduceMax": {"keepdims"},
    "ReduceMean": {"keepdims", "noop_with_empty_axes"},
    "ReduceMin": {"keepdims"},
    "ReduceSum": {"keepdims", "noop_with_empty_axes"},
    "Reshape": {"allowzero"},
    "RotaryEmbedding": {"interleaved", "num_heads", "rotary_embedding_dim"},
    "Shape": {"end", "start"},
    "Softmax": {"axis"},
    "Split": {"axis", "num_outputs"},
    "TensorScatter": {"axis", "mode"},
    "TopK": {"axis"},
    "Transpose": {"perm"},
}
CUSTOM = {ATTENTION: {"causal_kind", "kv_form", "query_form", DECOMPOSABLE}}


def check_file(graph: ir.Graph) -> None:
    """Raise EngineError for an operator, attribute or symmetric rule that the compilers are not known to honour."""
    for node in graph:
        table = {"": ALLOWED, DOMAIN: CUSTOM}.get(node.domain, {})
        if node.op_type not in table:
            raise EngineError(
                f"{node.name} is a {node.domain or 'onnx'}::{node.op_type}, which TensorRT is not known to run."
            )
        if unknown := sorted(set(node.attributes) - table[node.op_type]):
            raise EngineError(
                f"{node.name} ({node.op_type}) has the attribute {unknown[0]}, which TensorRT would ignore."
            )
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            _check_symmetric(node)


def _check_symmetric(node: ir.Node) -> None:
    """Zero points are 0 and scales positive: the compilers know no others.

    Scales of stored weights may be negative, which w4 uses for its code -8. Documents speak of positive scales; the
    compiler of TensorRT-RTX 1.7.1 takes them, and no weight with the code 8 could be had otherwise.
    """
    codes, scale, zero_point = [*node.inputs, None][:3]
    is_weight = node.op_type == "DequantizeLinear" and codes is not None and codes.is_initializer()
    for value, is_right, wanted in (
        (scale, lambda array: ((array != 0) if is_weight else (array > 0)).all(), "scales above 0"),
        (zero_point, lambda array: not array.any(), "zero points of 0"),
    ):
        tensor = None if value is None else value.const_value
        if value is not None and (tensor is None or not is_right(tensor.numpy())):
            raise EngineError(f"{node.name} ({node.op_type}) has not {wanted}; TensorRT quantizes symmetrically.")


def check_network(network: Any, module: Any, graph: ir.Graph) -> None:
    """Raise EngineError where parsing lost an input, an attention or a cache update, or an input decides shapes.

    `network` is the parsed INetworkDefinition of `graph`.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    read = {
        tensor.name
        for layer in layers
        for index in range(layer.num_inputs)
        if (tensor := layer.get_input(index)) is not None
    }
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    if [tensor.name for tensor in inputs] != [value.name for value in graph.inputs]:
        raise EngineError("The parsed network has other inputs than the file.")
    for tensor in inputs:
        if tensor.name not in read:
            raise EngineError(f"No layer reads {tensor.name}: the parser dropped it.")
        if tensor.is_shape_tensor:
            raise EngineError(f"{tensor.name} decides shapes, so that every step would wait for the host.")
    kinds = [layer.type for layer in layers]
    for kind, op_type in (
        (module.LayerType.ATTENTION_INPUT, ATTENTION),
        (module.LayerType.KV_CACHE_UPDATE, "TensorScatter"),
    ):
        wanted = sum(node.op_type == op_type for node in graph)
        if kinds.count(kind) != wanted:
            raise EngineError(f"{wanted} {op_type} became {kinds.count(kind)} layers of kind {kind}.")
