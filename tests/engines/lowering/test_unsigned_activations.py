import numpy as np
import onnx_ir as ir
import pytest
from onnx_text import assert_same_outputs, assert_untouched, parse, random_feed, run

from piston.engines.lowering.unsigned_activations import UnsignedActivationsPass

PAIR = """
g (float[batch, 6] x) => (float[batch, 6] y)
{
    codes = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (codes, scale, zero)
}
"""
SHARED = """
g (float[batch, 6] x) => (float[batch, 6] y, float[batch, 6] z)
{
    codes = QuantizeLinear (x, scale, zero)
    y = DequantizeLinear (codes, scale, zero)
    z = DequantizeLinear (codes, scale, zero)
}
"""
VALUES = {"scale": np.float32(0.02), "zero": np.int8(0)}


@pytest.mark.parametrize("text", [PAIR, SHARED], ids=["one reader", "two readers"])
def test_codes_become_unsigned_and_stand_for_the_same_numbers(text):
    model = parse(text, **VALUES)
    feed = random_feed(model, batch=40)
    assert np.abs(feed["x"]).max() > 127 * VALUES["scale"]  # some saturate
    assert_same_outputs(model, UnsignedActivationsPass(), feed, bound=0)
    assert {node.inputs[2].dtype for node in model.graph} == {ir.DataType.UINT8}
    assert model.graph[0].outputs[0].dtype == ir.DataType.UINT8


def test_the_lowest_code_survives():
    model = parse(PAIR, **VALUES)
    UnsignedActivationsPass()(model)
    assert run(model, {"x": np.full((1, 6), -100, np.float32)})["y"].flat[0] == np.float32(-128 * VALUES["scale"])


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        (PAIR, {"zero": np.int8(3)}),
        (PAIR, {"zero": np.uint8(128)}),
        (PAIR, {"scale": np.full(6, 0.02, np.float32)}),
        (PAIR.replace("DequantizeLinear (codes, scale", "DequantizeLinear (codes, other"), {"other": np.float32(0.03)}),
        (PAIR.replace("(float[batch, 6] y)", "(float[batch, 6] y, int8[batch, 6] codes)"), {}),
        (PAIR.replace("y = DequantizeLinear (codes, scale, zero)", "y = Cast <to = 1> (codes)"), {}),
    ],
    ids=["asymmetric", "unsigned already", "per channel", "two scales", "codes given out", "codes read as they are"],
)
def test_what_is_no_symmetric_pair_stays(text, changes):
    assert_untouched(parse(text, **VALUES | changes), UnsignedActivationsPass())


def test_codes_with_another_kind_of_reader_stay():
    text = SHARED.replace("z = DequantizeLinear (codes, scale, zero)", "z = Cast <to = 1> (codes)")
    assert_untouched(parse(text, **VALUES), UnsignedActivationsPass())
