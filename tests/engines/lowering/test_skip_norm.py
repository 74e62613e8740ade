import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, only, operators, parse, random_feed

from piston.engines.lowering.skip_norm import SkipNormPass

TEXT = """
g (float[batch, seq, 8] x, float[batch, seq, 8] y) => (float[batch, seq, 8] normed, float[batch, seq, 8] next)
{
    sum = Add (x, y)
    normed = RMSNormalization <axis = -1, epsilon = 0.01> (sum, weight)
    next = Neg (sum)
}
"""
LAYER_NORM = TEXT.replace("RMSNormalization", "LayerNormalization")


def model_of(text):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(8).astype(np.float32) for name in ("weight", "bias") if name in text}
    return parse(text, **weights)


@pytest.mark.parametrize(
    ("text", "fused"),
    [
        (TEXT, "SkipSimplifiedLayerNormalization"),
        (LAYER_NORM, "SkipLayerNormalization"),
        (LAYER_NORM.replace("weight)", "weight, bias)"), "SkipLayerNormalization"),
    ],
    ids=["rms", "layer", "layer with bias"],
)
def test_a_sum_and_its_norm_become_one_node_with_both_results(text, fused):
    model = model_of(text)
    assert_same_outputs(model, SkipNormPass(), random_feed(model, batch=2, seq=3))
    assert operators(model) == {fused: 1, "Neg": 1}
    assert only(model, fused).attributes["epsilon"].as_float() == pytest.approx(0.01)


def test_a_sum_that_is_itself_an_output_stays_one():
    model = model_of(TEXT.replace("next = Neg (sum)", "").replace("sum", "next"))
    assert_same_outputs(model, SkipNormPass(), random_feed(model, batch=2, seq=3))
    assert [value.name for value in model.graph.outputs] == ["normed", "next"]


def test_a_sum_that_two_norms_read_is_fused_with_one():
    model = model_of(TEXT.replace("Neg (sum)", "RMSNormalization <axis = -1> (sum, weight)"))
    assert_same_outputs(model, SkipNormPass(), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"SkipSimplifiedLayerNormalization": 1, "RMSNormalization": 1}


@pytest.mark.parametrize(
    "text",
    [
        TEXT.replace("Add (x, y)", "Add (x, weight)"),
        TEXT.replace("Add (x, y)", "Mul (x, y)"),
        TEXT.replace("axis = -1", "axis = 1").replace("weight)", "wide)"),
        TEXT.replace("batch, ", "batch, heads, "),
    ],
    ids=["a bias", "a product", "more than one axis", "another rank"],
)
def test_what_is_no_residual_sum_stays(text):
    wide = np.ones((1, 8), np.float32)
    model = parse(text, weight=np.ones(8, np.float32), wide=wide)
    assert_untouched(model, SkipNormPass())
