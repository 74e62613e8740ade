"""GroupQueryAttention becomes that of Piston's own kernels; a factor of its queries goes into the scale."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from piston.engines.lowering.kernels.attention import KernelAttentionPass

HEADS, DIM, CAPACITY = 2, 32, 16
WIDTH = HEADS * DIM


def model_of(*, is_packed):
    """Attention without rotation over a cache, whose first input is multiplied by a half."""
    width = 3 * WIDTH if is_packed else WIDTH
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 2, width])]
    given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, WIDTH]) for name in ("k", "v")]
    cache = [1, HEADS, CAPACITY, DIM]
    given += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in ("past_k", "past_v")]
    given += [helper.make_tensor_value_info("last", TensorProto.INT32, [1])]
    given += [helper.make_tensor_value_info("total", TensorProto.INT32, [1])]
    nodes = [
        helper.make_node("Mul", ["x", "half"], ["q"]),
        helper.make_node(
            "GroupQueryAttention",
            ["q", *(["", ""] if is_packed else ["k", "v"]), "past_k", "past_v", "last", "total"],
            ["y", "present_k", "present_v"],
            domain="com.microsoft",
            num_heads=HEADS,
            kv_num_heads=HEADS,
            scale=0.25,
            do_rotary=0,
        ),
    ]
    results = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2, WIDTH])]
    results += [helper.make_tensor_value_info(name, TensorProto.FLOAT, cache) for name in ("present_k", "present_v")]
    half = numpy_helper.from_array(np.array(0.5, np.float32), "half")
    graph = helper.make_graph(nodes, "g", given, results, [half])
    opsets = [helper.make_opsetid(domain, 1 if domain else 21) for domain in ("", "com.microsoft")]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets))


@pytest.mark.parametrize(("is_packed", "scale"), [(False, 0.125), (True, 0.25)], ids=["apart", "packed"])
def test_a_factor_of_the_queries_alone_goes_into_the_scale(is_packed, scale):
    """Where keys and values are in the same input, they are multiplied, too."""
    model = model_of(is_packed=is_packed)
    attention = KernelAttentionPass()
    attention(model)
    assert attention.fused == 1
    (node,) = (node for node in model.graph if node.op_type == "Attention")
    assert node.attributes["scale"].as_float() == scale
    assert [node.op_type for node in model.graph] == [*(["Mul"] if is_packed else []), "Attention"]
