"""What a scale leaves over is rounded once more: two products of the same codes make what numpy says."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from piston.calibration.graph.linears import find_linears
from piston.calibration.graph.qdq import QuantizeActivationsPass
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.residual import RATIOS, add_remainder, fine_scale, round_steps
from piston.calibration.schemes.smoothquant import search
from piston.core.errors import MisuseError
from piston.graph.rounding import Grid, round_to_nearest

RNG = np.random.default_rng(0)
TEXT = """
<ir_version: 10, opset_import: ["" : 24]>
graph (float[1, t, 8] x) => (float[1, t, 6] y, float[1, t, 6] z)
<float[8, 6] w = {weight}, float[8, 6] v = {weight}, float[6] b = {{1, 2, 3, 4, 5, 6}}>
{{
  h = Relu(x)
  p = MatMul(h, w)
  y = Add(p, b)
  z = MatMul(h, v)
}}
"""


@given(st.sampled_from(RATIOS), st.floats(1e-3, 1e6), st.integers(0, 2**32 - 1))
def test_no_value_within_reach_is_wrong_by_more_than_half_a_step_of_its_scale(ratio, largest, seed):
    rng = np.random.default_rng(seed)
    values = (rng.standard_cauchy(300) * largest / 50).clip(-largest, largest).astype(np.float32)
    fine = np.float32(fine_scale(largest, ratio))
    apart = np.abs(round_steps(values / fine, ratio) * fine - values)
    is_held = np.abs(values) <= 127 * fine
    slack = 1 + 1e-3
    assert (apart[is_held] <= fine / 2 * slack).all()
    assert (apart <= ratio * fine / 2 * slack).all()


def test_a_ratio_of_zero_is_one_saturated_scale():
    steps = np.array([-300, -0.5, 0.5, 1.5, 126.6, 300], np.float32)
    assert round_steps(steps.copy(), 0).tolist() == [-128, 0, 0, 2, 127, 127]
    assert fine_scale(254, 0) == 2
    assert fine_scale(0, 15) > 0


def sample_of(outlying):
    """Tokens [600, 48] of which single values, in any channel, are so many times the others."""
    sample = RNG.standard_normal((600, 48)).astype(np.float32)
    sample[RNG.random(sample.shape) < 0.01] *= outlying
    return sample, RNG.standard_normal((48, 20)).astype(np.float32)


def test_single_large_values_are_what_a_remainder_is_for():
    sample, weight = sample_of(50)
    act = np.abs(sample).max(axis=0)
    alone, both = (search(sample, act, [weight], remainder=remainder) for remainder in (False, True))
    assert alone.ratio == 0
    assert both.ratio in RATIOS
    assert both.error_after < alone.error_after / 10


def test_an_even_activation_gets_none():
    sample = RNG.choice([-1.0, 1.0], (600, 48)).astype(np.float32)
    weight = RNG.standard_normal((48, 20)).astype(np.float32)
    assert search(sample, np.abs(sample).max(axis=0), [weight], remainder=True).ratio == 0


def test_what_nothing_can_absorb_stays_and_may_have_a_remainder():
    sample, weight = sample_of(50)
    found = search(sample, np.abs(sample).max(axis=0), [weight], can_fold=False, remainder=True)
    assert (found.factors == 1).all()
    assert found.ratio in RATIOS
    assert found.error_after < found.error_before / 10


def graph():
    weight = RNG.standard_normal((8, 6)).astype(np.float32)
    text = "{" + ", ".join(map(str, weight.reshape(-1))) + "}"
    return ir.from_proto(onnx.parser.parse_model(TEXT.format(weight=text))), weight


def test_two_terms_are_multiplied_by_the_same_codes_and_added():
    model, weight = graph()
    linears = find_linears(model)
    names = [linear.matmul.name or linear.matmul.outputs[0].name for linear in linears]
    for linear, name in zip(linears, names, strict=True):
        linear.matmul.name = name
    value, fine, ratio = linears[0].input, 0.01, 31
    QuantizeActivationsPass({"h": fine}, {"h": names})(model)
    for linear in linears:
        add_remainder(linear, value, fine * ratio)
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    kinds = [node.op_type for node in model.graph]
    assert (kinds.count("QuantizeLinear"), kinds.count("Sub"), kinds.count("MatMul")) == (2, 1, 4)  # shared by both
    x = (RNG.standard_normal((1, 30, 8)) * np.array([1, 1, 1, 1, 1, 1, 1, 15])).astype(np.float32)
    y, z = ReferenceEvaluator(proto).run(None, {"x": x})
    h = np.maximum(x, 0)
    assert h.max() > 127 * fine
    rounded = round_steps(h / np.float32(fine), ratio) * fine
    np.testing.assert_allclose(z, rounded @ weight, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(y, rounded @ weight + np.arange(1, 7), rtol=1e-4, atol=1e-4)


def test_weights_stay_one_matrix_where_remainders_are_written():
    model, weight = graph()
    linears = find_linears(model)
    chosen = {linear.name: round_to_nearest(weight, Grid(8)) for linear in linears[:1]}
    prepared = Prepared(weights=chosen, scales={"h": 0.01}, ratios={"h": 15})
    holder = type("Graph", (), {"model": model, "linears": linears})()
    linears[0].matmul.name = "w/MatMul"
    assert prepared.insert(holder, {linears[0].name}) == [linears[0].name]
    dequantizers = [node for node in model.graph if node.op_type == "DequantizeLinear" and "w" in node.inputs[0].name]
    assert len(dequantizers) == 1
    assert [use.node.op_type for use in dequantizers[0].outputs[0].uses()] == ["MatMul", "MatMul"]
    assert linears[1].input.name == "h"  # what was not chosen reads floats


@pytest.mark.parametrize("scheme", ["w8", "fp"])
def test_a_remainder_is_about_activations(scheme):
    with pytest.raises(MisuseError, match="--no-remainder is about activations"):
        Recipe(scheme=scheme, remainder=False, kv="int8")
