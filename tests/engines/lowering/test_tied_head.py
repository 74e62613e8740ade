import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, operators, parse

from piston.engines.lowering.tied_head import TiedHeadPass

TEXT = """
g (int64[batch, seq] ids) => (float[batch, seq, 11] logits)
{
    x = Gather (embedding, ids)
    swapped = Transpose <perm = [1, 0]> (embedding)
    logits = MatMul (x, swapped)
}
"""
COMPUTED = """
g (float[batch, 6] x, float[11, 6] w) => (float[batch, 11] y)
{
    swapped = Transpose (w)
    y = MatMul (x, swapped)
}
"""


def model_of(text):
    return parse(text, embedding=np.random.default_rng(0).standard_normal((11, 6)).astype(np.float32))


@pytest.mark.parametrize("text", [TEXT, TEXT.replace("<perm = [1, 0]>", "")], ids=["perm", "default"])
def test_a_tied_head_reads_the_embedding_as_it_lies(text):
    model = model_of(text)
    assert_same_outputs(model, TiedHeadPass(), {"ids": np.array([[3, 1, 10], [0, 7, 5]])})
    assert operators(model) == {"Gather": 1, "FusedMatMul": 1}
    assert list(model.graph.initializers) == ["embedding"]


def test_a_transposed_activation_stays():
    assert_untouched(parse(COMPUTED), TiedHeadPass())


def test_a_plain_head_stays():
    model = parse("g (float[a, 6] x) => (float[a, 11] y) { y = MatMul (x, w) }", w=np.ones((6, 11), np.float32))
    assert_untouched(model, TiedHeadPass())
