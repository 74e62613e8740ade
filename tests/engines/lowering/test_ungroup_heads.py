import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, operators, parse, random_feed

from piston.engines.lowering.ungroup_heads import UngroupHeadsPass

HEADS, HEAD_DIM = 3, 4
TEXT = """
g (float[batch, seq, 8] x) => (float[batch, 3, seq, 4] q, float[batch, 3, seq, 4] k, float[batch, 3, seq, 4] v)
{
    a = MatMul (x, weight)
    b = Add (a, bias)
    c = Reshape (b, shape)
    d = Transpose <perm = [0, 2, 1, 3]> (c)
    q, k, v = Split <axis = 3, num_outputs = 3> (d)
}
"""


def model_of(text):
    rng = np.random.default_rng(0)
    weights = {"weight": (8, 36), "bias": (36,)}
    arrays = {name: rng.standard_normal(dims).astype(np.float32) for name, dims in weights.items() if name in text}
    return parse(text, shape=np.array([0, 0, HEADS, 3 * HEAD_DIM]), sizes=np.array([2, 4, 6]), **arrays)


@pytest.mark.parametrize(
    "text", [TEXT, TEXT.replace("b = Add (a, bias)", "").replace("(b, ", "(a, ")], ids=["bias", "plain"]
)
def test_the_linear_writes_query_key_and_value_one_after_the_other(text):
    model = model_of(text)
    assert_same_outputs(model, UngroupHeadsPass(), random_feed(model, batch=2, seq=5))
    split = next(node for node in model.graph if node.op_type == "Split")
    assert [list(output.shape)[2] for output in split.outputs] == [HEADS * HEAD_DIM] * 3
    assert operators(model)["Transpose"] == 3


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("[batch, seq, 8] x)", "[batch, seq, 8] x, float[36] bias)"),
        TEXT.replace("seq, 4] v)", "seq, 4] v, float[batch, seq, 36] b)"),
        TEXT.replace("perm = [0, 2, 1, 3]", "perm = [0, 1, 2, 3]").replace("3, seq", "seq, 3"),
    ],
    ids=["a computed bias", "the linear read elsewhere", "no exchange of axes"],
)
def test_other_splits_stay(text):
    if "float[36] bias" in text:
        arrays = {"weight": np.ones((8, 36), np.float32), "shape": np.array([0, 0, HEADS, 3 * HEAD_DIM])}
        assert_untouched(parse(text, **arrays), UngroupHeadsPass())
    else:
        assert_untouched(model_of(text), UngroupHeadsPass())
