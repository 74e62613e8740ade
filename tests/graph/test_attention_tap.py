import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import parse, run

from piston.core.errors import MisuseError
from piston.graph.attention_tap import tap_attention

TEXT = """
g (float[1, 2, 3, 4] q, float[1, 2, 3, 4] k, float[1, 2, 3, 4] v) => (float[1, 2, 3, 4] y)
{
    y = Attention <scale = 0.5> (q, k, v)
}
"""
BY_HAND = """
g (float[1, 2, 3, 4] q, float[1, 2, 3, 4] k, float[1, 2, 3, 4] v) => (float[1, 2, 3, 4] y)
{
    turned = Transpose <perm = [0, 1, 3, 2]> (k)
    scores = MatMul (q, turned)
    half = Constant <value_float = 0.5> ()
    scaled = Mul (scores, half)
    weights = Softmax <axis = -1> (scaled)
    y = MatMul (weights, v)
}
"""


def feeds():
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal((1, 2, 3, 4)).astype(np.float32) for name in "qkv"}


@pytest.mark.parametrize("text", [TEXT, BY_HAND], ids=["the operator", "by hand"])
def test_the_weights_are_the_softmax_of_the_scaled_products(text):
    model, given = parse(text), feeds()
    before = run(model, given)["y"]
    (tap,) = tap_attention(model)
    found = run(model, given)
    scores = 0.5 * given["q"] @ given["k"].swapaxes(-1, -2)
    expected = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(found[tap.output], expected, atol=1e-6)
    np.testing.assert_allclose(found["y"], before, atol=1e-6)


def test_a_softmax_that_weighs_nothing_is_no_attention():
    model = parse("g (float[2, 3] x) => (float[2, 3] y) { y = Softmax (x) }")
    with pytest.raises(MisuseError, match="no attention that gives its weights"):
        tap_attention(model)


def test_attention_of_own_kernels_is_refused_by_name():
    model = parse(TEXT)
    node = next(iter(model.graph))
    node.domain, node.op_type = "piston", "BidirectionalAttention"
    with pytest.raises(MisuseError, match="BidirectionalAttention of Piston's own kernels keeps no attention weights"):
        tap_attention(model)
    assert isinstance(model, ir.Model)
