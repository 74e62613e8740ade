"""What `calibration/schemes/outliers.py` sets apart, and that the sum is what it was."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from piston.calibration.graph.linears import find_linears
from piston.calibration.schemes.outliers import add_outliers, has_outliers, largest_channels, num_outliers, round_others
from piston.core.errors import MisuseError
from piston.graph.rounding import Grid

TEXT = """
<ir_version: 10, opset_import: ["" : 24]>
graph (float[1, t, 8] x) => (float[1, t, 6] y)
<float[8, 6] w = {zeros}, float[6] b = {bias}>
{{
  h = Relu(x)
  p = MatMul(h, w)
  y = Add(p, b)
}}
"""


def graph():
    zeros, bias = ("{" + ", ".join(items) + "}" for items in (["0"] * 48, ["1", "2", "3", "4", "5", "6"]))
    model = ir.from_proto(onnx.parser.parse_model(TEXT.format(zeros=zeros, bias=bias)))
    weight = np.random.default_rng(0).standard_normal((8, 6)).astype(np.float32)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    return model, weight


def test_the_largest_channels_are_found_in_ascending_order():
    assert largest_channels(np.array([1, 9, 3, 8], np.float32), 2).tolist() == [1, 3]
    assert largest_channels(np.array([1, 9], np.float32), 0).tolist() == []


def test_more_than_half_of_the_inputs_are_no_outliers():
    assert num_outliers(4, 8) == 4
    with pytest.raises(MisuseError, match="more than half of the 8 inputs"):
        num_outliers(5, 8)


def test_other_weights_round_as_if_the_outliers_were_not_there():
    weight = np.random.default_rng(1).standard_normal((8, 6)).astype(np.float32)
    weight[[2, 5]] *= 100
    found = round_others(weight, Grid(8), np.array([2, 5]))
    others = np.delete(weight, [2, 5], axis=0)
    assert not found.codes[[2, 5]].any()
    np.testing.assert_array_equal(found.dequantized()[[2, 5]], weight[[2, 5]])
    step = np.abs(others).max(axis=0) / 127
    assert (np.abs(np.delete(found.dequantized(), [2, 5], axis=0) - others) <= step / 2 * 1.001).all()


def test_outliers_beside_zeroed_weights_leave_the_function_as_it_was():
    model, weight = graph()
    (linear,) = find_linears(model)
    assert has_outliers([linear])
    rounded = round_others(weight, Grid(8), np.array([1, 6]))
    assert rounded.outliers is not None
    add_outliers(linear, rounded.outliers)
    weight = weight.copy()
    expected_weight = weight.copy()
    weight[[1, 6]] = 0
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    x = np.random.default_rng(2).standard_normal((1, 3, 8)).astype(np.float32)
    (found,) = ReferenceEvaluator(ir.to_proto(model)).run(None, {"x": x})
    np.testing.assert_allclose(found, np.maximum(x, 0) @ expected_weight + np.arange(1, 7), rtol=1e-5, atol=1e-5)
