"""Graphs written in ONNX's text syntax, and running them before and after a rewrite."""

from collections import Counter

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

HEADER = '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1]>\n'
NUMPY_TYPES = {ir.DataType.FLOAT: np.float32, ir.DataType.INT64: np.int64, ir.DataType.INT32: np.int32}


def parse(text: str, **weights: np.ndarray) -> ir.Model:
    """The model of a text without header, with weights as initializers, and with inferred shapes."""
    proto = onnx.parser.parse_model(HEADER + text)
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def run(model: ir.Model, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Outputs by name, from ONNX Runtime without its optimizations; what a rewrite stopped reading is not fed.

    Weights are not packed: MatMulNBits then multiplies in float32, without rounding activations to INT8.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_prepacking", "1")
    session = onnxruntime.InferenceSession(
        ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    known = {item.name for item in session.get_inputs()}
    outputs = session.run(None, {name: value for name, value in feed.items() if name in known})
    return dict(zip([item.name for item in session.get_outputs()], outputs, strict=True))


def random_feed(model: ir.Model, seed: int = 0, **sizes: int) -> dict[str, np.ndarray]:
    """Normal floats for every float input; `sizes` gives the dynamic dimensions."""
    rng = np.random.default_rng(seed)
    return {
        value.name: rng.standard_normal(
            [dim if isinstance(dim, int) else sizes[str(dim)] for dim in value.shape]
        ).astype(np.float32)
        for value in model.graph.inputs
        if value.dtype == ir.DataType.FLOAT
    }


def operators(model: ir.Model) -> dict[str, int]:
    """How often each operator occurs."""
    return dict(Counter(node.op_type for node in model.graph))


def only(model: ir.Model, op_type: str) -> ir.Node:
    """The one node of a type."""
    (node,) = [node for node in model.graph if node.op_type == op_type]
    return node


def assert_same_outputs(model: ir.Model, rewrite, feed: dict[str, np.ndarray], bound: float = 2e-5) -> None:
    """Apply a pass and check that every output keeps its name and its elements."""
    expected = run(model, feed)
    assert rewrite(model).modified
    actual = run(model, feed)
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(actual[name], array, atol=bound, rtol=bound, err_msg=name)


def assert_untouched(model: ir.Model, rewrite) -> None:
    """Apply a pass and check that it changes nothing."""
    before = ir.to_proto(model).SerializeToString()
    assert not rewrite(model).modified
    assert ir.to_proto(model).SerializeToString() == before
