import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, only, operators, parse, random_feed

from piston.engines.lowering.integer_matmul import IntegerMatMulPass

LINEAR = """
g (float[batch, seq, 20] x) => (float[batch, seq, 6] y)
{
    q = QuantizeLinear (x, scale, zero)
    dq = DequantizeLinear (q, scale, zero)
    w = DequantizeLinear <axis = 1> (codes, scales)
    y = MatMul (dq, w)
}
"""
BIASED = LINEAR.replace("y = MatMul (dq, w)", "m = MatMul (dq, w)\n y = Add (bias, m)")
TWO = """
g (float[batch, seq, 20] x) => (float[batch, seq, 6] y, float[batch, seq, 6] z)
{
    q = QuantizeLinear (x, scale, zero)
    dq = DequantizeLinear (q, scale, zero)
    w = DequantizeLinear <axis = 1> (codes, scales)
    y = MatMul (dq, w)
    other_w = DequantizeLinear <axis = 1> (other_codes, scales)
    z = MatMul (dq, other_w)
}
"""


def model_of(text, **changes):
    rng = np.random.default_rng(0)
    values = {
        "scale": np.float32(0.015),
        "zero": np.uint8(128),
        "codes": rng.integers(-127, 128, (20, 6), np.int8),
        "other_codes": rng.integers(-127, 128, (20, 6), np.int8),
        "scales": rng.uniform(0.01, 0.03, 6).astype(np.float32),
        "bias": rng.standard_normal(6).astype(np.float32),
    }
    return parse(text, **{name: value for name, value in (values | changes).items() if name in text})


@pytest.mark.parametrize("text", [LINEAR, BIASED], ids=["plain", "biased"])
def test_a_linear_on_codes_becomes_an_integer_product(text):
    model = model_of(text)
    lowering = IntegerMatMulPass()
    assert_same_outputs(model, lowering, random_feed(model, batch=2, seq=30))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 1}
    assert lowering.fused == 1


def test_linears_on_one_activation_share_its_codes():
    model = model_of(TWO)
    assert_same_outputs(model, IntegerMatMulPass(), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"QuantizeLinear": 1, "MatMulIntegerToFloat": 2}


def test_a_scale_may_be_negative():
    model = model_of(LINEAR, scales=np.linspace(-0.02, 0.02, 6).astype(np.float32))
    assert_same_outputs(model, IntegerMatMulPass(), random_feed(model, batch=1, seq=3))


def test_a_float_reader_keeps_the_pair():
    model = model_of(LINEAR.replace("(float[batch, seq, 6] y)", "(float[batch, seq, 6] y, float[batch, seq, 20] dq)"))
    assert_same_outputs(model, IntegerMatMulPass(), random_feed(model, batch=1, seq=3))
    assert operators(model) == {"QuantizeLinear": 1, "DequantizeLinear": 1, "MatMulIntegerToFloat": 1}


def test_an_add_that_is_no_bias_stays_outside():
    text = BIASED.replace("(float[batch, seq, 20] x)", "(float[batch, seq, 20] x, float[batch, seq, 6] r)")
    model = model_of(text.replace("Add (bias, m)", "Add (r, m)"))
    assert_same_outputs(model, IntegerMatMulPass(), random_feed(model, batch=1, seq=3))
    assert only(model, "MatMulIntegerToFloat").inputs[-1].name == "zero"


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (LINEAR, {"zero": np.int8(0)}),
        (LINEAR, {"zero": np.uint8(127)}),
        (LINEAR.replace("<axis = 1>", "<axis = 0>"), {"scales": np.full(20, 0.1, np.float32)}),
        (
            LINEAR.replace("<axis = 1>", "<axis = 0, block_size = 10>"),
            {"scales": np.full((2, 6), 0.1, np.float32)},
        ),
        (LINEAR.replace("MatMul (dq, w)", "MatMul (x, w)"), {}),
        (
            LINEAR.replace("DequantizeLinear <axis = 1> (codes, scales)", "Identity (codes)"),
            {"codes": np.ones((20, 6))},
        ),
        (LINEAR.replace("(codes, scales)", "(codes, scales, zeros)"), {"zeros": np.arange(6).astype(np.int8)}),
    ],
    ids=["signed codes", "another zero point", "scales of inputs", "blocks", "no codes", "float", "asymmetric weight"],
)
def test_what_is_no_integer_product_stays(text, changes):
    changes = {name: np.asarray(value, np.float32) if name == "codes" else value for name, value in changes.items()}
    assert_untouched(model_of(text, **changes), IntegerMatMulPass())
