"""What is written is recognised; what it computes is checked in tests/calibration/graph/test_qdq.py."""

import ml_dtypes
import numpy as np
import pytest
from onnx_text import only, parse, run

from piston.graph.pattern import array_of, initializer
from piston.graph.qdq import (
    activation_pair,
    cache_rounding,
    dequantize_weight,
    quantize_activation,
    quantized_weight,
    quantizers,
    round_cache,
)

WEIGHT = np.ones((4, 2), np.float32)
PRODUCT = "g (float[1, 4] x) => (float[1, 2] y) { a = Relu (x) y = MatMul (a, w) }"
SCATTER = """
g (float[1, 2, 8, 4] past, float[1, 2, 1, 4] new, int64[1] at) => (float[1, 2, 8, 4] present)
{
    present = TensorScatter <axis = 2> (past, new, at)
}
"""


@pytest.mark.parametrize(
    ("dtype", "bits", "scales", "block"),
    [
        (np.int8, 8, np.array([0.5, 2.0]), 0),
        (np.int8, 8, np.array([[0.5, 2.0], [1.0, 3.0]]), 2),
        (ml_dtypes.int4, 4, np.array([[0.5, 2.0], [1.0, 3.0]]), 2),
    ],
)
def test_a_weight_that_was_written_is_read(dtype, bits, scales, block):
    model = parse(PRODUCT, w=WEIGHT)
    codes = np.arange(-4, 4).reshape(4, 2).astype(dtype)
    dequantize_weight(model.graph, "w", codes, scales, block)
    found = quantized_weight(only(model, "MatMul").inputs[1])
    assert (found.bits, found.block) == (bits, block)
    np.testing.assert_array_equal(array_of(found.codes), codes)
    np.testing.assert_array_equal(array_of(found.scales), scales.astype(np.float32))
    assert "w" not in model.graph.initializers


def test_an_activation_pair_that_was_written_is_read():
    model = parse(PRODUCT, w=WEIGHT)
    product = only(model, "MatMul")
    product.name = "product"
    rounded = quantize_activation(model.graph, product.inputs[0], 0.25, frozenset(["product"]))
    assert product.inputs[0] is rounded
    pair = activation_pair(rounded)
    assert (pair.source.name, pair.codes.name) == ("a", "a.codes")
    assert array_of(pair.scale) == np.float32(0.25)
    assert list(quantizers(model.graph)) == ["a.codes"]


@pytest.mark.parametrize("scales", [np.array(0.5), np.array([0.5, 1, 2, 4, 0.25, 3, 5, 7]).reshape(1, 2, 1, 4)])
def test_a_rounded_cache_that_was_written_is_read_and_rounds(scales):
    model = parse(SCATTER)
    scatter = only(model, "TensorScatter")
    round_cache(model.graph, scatter, scales.astype(np.float32))
    found = cache_rounding(scatter.inputs[1])
    assert found.source.name == "new"
    assert found.is_per_channel == bool(scales.ndim)
    np.testing.assert_array_equal(array_of(found.scale), scales.astype(np.float32))
    new = np.random.default_rng(0).normal(size=(1, 2, 1, 4)).astype(np.float32)
    past = np.zeros((1, 2, 8, 4), np.float32)
    present = run(model, {"past": past, "new": new, "at": np.array([3])})["present"]
    np.testing.assert_allclose(present[:, :, 3:4], np.rint(new / scales) * scales, rtol=1e-6)


def test_a_second_initializer_of_one_name_is_refused():
    model = parse(PRODUCT, w=WEIGHT)
    with pytest.raises(ValueError, match="'w' is already registered"):
        initializer(model.graph, "w", WEIGHT)
