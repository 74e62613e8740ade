"""Linear layers of traced modules become MatMul by [in, out]; ONNX Runtime runs the graph before and after."""

import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, operators, parse, random_feed

from piston.export.passes.linear_form import LinearFormPass

GEMM = """
g (float[batch, 6] x) => (float[batch, 4] y)
{
    y = Gemm <transB = 1> (x, weight, bias)
}
"""
TURNED = """
g (float[batch, seq, 6] x) => (float[batch, seq, 4] y)
{
    turned = Transpose <perm = [1, 0]> (weight)
    y = MatMul (x, turned)
}
"""


def model_of(text, *shape):
    rng = np.random.default_rng(0)
    weights = {"weight": rng.standard_normal(shape).astype(np.float32)}
    if "bias" in text:
        weights["bias"] = rng.standard_normal(4).astype(np.float32)
    return parse(text, **weights)


@pytest.mark.parametrize(
    ("text", "shape", "expected"),
    [
        (GEMM, (4, 6), {"MatMul": 1, "Add": 1}),
        (GEMM.replace("<transB = 1> ", ""), (6, 4), {"MatMul": 1, "Add": 1}),
        (GEMM.replace(", bias", ""), (4, 6), {"MatMul": 1}),
        (TURNED, (4, 6), {"MatMul": 1}),
    ],
    ids=["turned", "as it is", "without bias", "behind a Transpose"],
)
def test_products_by_a_constant_become_a_matmul_by_inputs_and_outputs(text, shape, expected):
    model = model_of(text, *shape)
    assert_same_outputs(model, LinearFormPass(), random_feed(model, batch=3, seq=2))
    assert operators(model) == expected
    assert list(model.graph.initializers["weight"].shape) == [6, 4]


def test_a_weight_that_something_else_reads_keeps_its_layout():
    text = GEMM.replace("y)\n{", "y, float[4, 6] same)\n{").replace("}", "    same = Neg (weight)\n}")
    model = model_of(text, 4, 6)
    assert_same_outputs(model, LinearFormPass(), random_feed(model, batch=3))
    assert list(model.graph.initializers["weight"].shape) == [4, 6]


@pytest.mark.parametrize("attributes", ["transB = 1, alpha = 0.5", "transB = 1, beta = 2.0"])
def test_scaled_products_stay(attributes):
    assert_untouched(model_of(GEMM.replace("transB = 1", attributes), 4, 6), LinearFormPass())
