"""Q/DQ in the graph means what its integers say: checked on ONNX's own reference evaluator and on ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from piston.calibration.graph.qdq import QuantizeActivationsPass, QuantizeWeightsPass
from piston.graph.rounding import Grid, round_to_nearest

X = np.random.default_rng(0).normal(size=(1, 3, 64)).astype(np.float32)
W = np.random.default_rng(1).normal(size=(64, 8)).astype(np.float32)


def graph():
    model = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["": 24]>
        agraph (float[1,3,64] x) => (float[1,3,8] y, float[1,3,8] z, float[1,3,64] a) {
            a = Relu(x)
            y = MatMul(a, w)
            z = MatMul(a, v)
        }"""
    )
    for name in ("w", "v"):
        value = next(item for node in model.graph for item in node.inputs if item.name == name)
        value.const_value = ir.tensor(W, name=name)
        value.shape, value.type = ir.Shape(W.shape), ir.TensorType(ir.DataType.FLOAT)
        model.graph.register_initializer(value)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def run(model):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return ReferenceEvaluator(proto).run(None, {"x": X})


@pytest.mark.parametrize("grid", [Grid(8), Grid(8, 32), Grid(4, 32), Grid(4, 16)])
def test_a_quantized_weight_computes_with_its_dequantized_values(grid):
    model, quantized = graph(), round_to_nearest(W, grid)
    QuantizeWeightsPass({"w": quantized})(model)
    y, z, a = run(model)
    assert np.allclose(y, a @ quantized.dequantized(), atol=1e-5)
    assert np.allclose(z, a @ W, atol=1e-5)
    assert "w" not in model.graph.initializers


def test_only_the_named_readers_see_the_quantized_activation():
    model, scale = graph(), 0.01
    QuantizeActivationsPass({"a": scale}, {"a": ["y"]})(model)
    y, z, a = run(model)
    rounded = np.clip(np.rint(a / np.float32(scale)), -128, 127) * np.float32(scale)
    assert np.abs(rounded - a).max() > 0.1  # the scale saturates: the pair does something
    assert np.allclose(y, rounded @ W, atol=1e-4)
    assert np.allclose(z, a @ W, atol=1e-5)


def test_readers_of_one_value_share_one_pair():
    model = graph()
    QuantizeActivationsPass({"a": 0.1}, {"a": ["y", "z"]})(model)
    assert [node.op_type for node in model.graph].count("QuantizeLinear") == 1


def test_a_weight_of_another_shape_is_refused():
    with pytest.raises(ir.passes.PreconditionError, match="no weight w"):
        QuantizeWeightsPass({"w": round_to_nearest(W[:32], Grid(8))})(graph())
