import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_untouched, only, operators, parse, run

from piston.engines.lowering.quantize_head import QuantizeHeadPass, codes_and_scales

TIED = """
g (int64[batch, seq] ids) => (float[batch, seq, 11] logits)
{
    x = Gather (embedding, ids)
    swapped = Transpose <perm = [1, 0]> (embedding)
    logits = MatMul (x, swapped)
}
"""
APART = """
g (int64[batch, seq] ids) => (float[batch, seq, 11] logits)
{
    x = Gather (embedding, ids)
    hidden = MatMul (x, inner)
    m = MatMul (hidden, head)
    scaled = Mul (m, factor)
    logits = Tanh (scaled)
}
"""
IDS = {"ids": np.array([[3, 1, 10], [0, 7, 5]])}


def model_of(text, width=64):
    rng = np.random.default_rng(0)
    values = {
        "embedding": rng.standard_normal((11, width)) / 8,
        "inner": rng.standard_normal((width, width)) / 8,
        "head": rng.standard_normal((width, 11)) / 8,
        "factor": np.array(0.5),
    }
    return parse(text, **{name: value.astype(np.float32) for name, value in values.items() if name in text})


@pytest.mark.parametrize(("text", "width"), [(TIED, 64), (TIED, 100), (APART, 96)])
def test_the_head_is_rounded_to_int8_in_blocks(text, width):
    model = model_of(text, width)
    expected = run(model, IDS)["logits"]
    assert QuantizeHeadPass()(model).modified
    logits = run(model, IDS)["logits"]
    assert 0 < np.abs(logits - expected).max() < 0.01 * np.abs(expected).max()
    assert model.graph.initializers["lm_head.codes"].dtype == ir.DataType.INT8


def test_a_tied_embedding_stays_as_it_is_and_is_no_longer_transposed():
    model = model_of(TIED)
    QuantizeHeadPass()(model)
    assert operators(model) == {"Gather": 1, "DequantizeLinear": 1, "MatMul": 1}
    assert model.graph.initializers["embedding"].dtype == ir.DataType.FLOAT


def test_only_the_product_that_makes_the_logits_is_quantized():
    model = model_of(APART)
    QuantizeHeadPass()(model)
    assert only(model, "DequantizeLinear").outputs[0].uses()[0].node.outputs[0].name == "m"
    assert "inner" in model.graph.initializers
    assert "head" not in model.graph.initializers


def test_a_head_in_integers_stays():
    model = model_of(TIED)
    QuantizeHeadPass()(model)
    assert_untouched(model, QuantizeHeadPass())


def test_logits_without_a_product_stay():
    text = "g (float[batch, 4] x) => (float[batch, 4] logits) { logits = Tanh (x) }"
    assert_untouched(parse(text), QuantizeHeadPass())


def test_codes_are_nearest_and_a_block_of_zeros_is_zero():
    weight = np.random.default_rng(0).standard_normal((70, 5)).astype(np.float32)
    weight[32:64, 2] = 0
    codes, scales = codes_and_scales(weight, 32)
    assert scales.shape == (3, 5)
    step = np.repeat(scales, 32, axis=0)[:70]
    assert (np.abs(codes * step - weight) <= step / 2 * (1 + 1e-5)).all()
    assert not codes[32:64, 2].any()
    assert np.abs(codes).max() == 127
