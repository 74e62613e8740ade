"""Which products become products of bfloat16, with what they take along, and how their weights are stored."""

import ml_dtypes
import numpy as np
import pytest
from onnx_text import only, operators, parse

from piston.engines.lowering.kernels.bfloat16 import KernelBfloat16Pass, tiles

RNG = np.random.default_rng(0)
WEIGHT, BIAS = RNG.standard_normal((64, 32)).astype(np.float32), RNG.standard_normal(32).astype(np.float32)
GRAPH = "g (float[b, s, 64] x) => (float[b, s, 32] y) {{ {} }}"


@pytest.mark.parametrize(
    ("nodes", "kind", "inputs"),
    [
        ("y = MatMul (x, w)", "Bfloat16Linear", ["x", "w.bfloat16"]),
        ("m = MatMul (x, w) y = Add (m, bias)", "Bfloat16Linear", ["x", "w.bfloat16", "bias"]),
        ("m = MatMul (x, w) y = Add (bias, m)", "Bfloat16Linear", ["x", "w.bfloat16", "bias"]),
        ("m = MatMul (x, w) a = Add (m, bias) y = Gelu (a)", "GeluBfloat16Linear", ["x", "w.bfloat16", "bias"]),
        (
            "m = MatMul (x, w) y = com.microsoft.BiasGelu (m, bias)",
            "GeluBfloat16Linear",
            ["x", "w.bfloat16", "bias"],
        ),
        ("m = MatMul (x, w) y = Gelu (m)", "GeluBfloat16Linear", ["x", "w.bfloat16"]),
    ],
)
def test_a_product_takes_its_bias_and_gelu_along(nodes, kind, inputs):
    model = parse(GRAPH.format(nodes), w=WEIGHT, bias=BIAS)
    KernelBfloat16Pass()(model)
    assert operators(model) == {kind: 1}
    node = only(model, kind)
    assert [value.name for value in node.inputs] == inputs
    assert node.outputs[0].name == "y"


@pytest.mark.parametrize(
    ("nodes", "tanh"),
    [
        ('m = MatMul (x, w) a = Add (m, bias) y = Gelu <approximate = "tanh"> (a)', 1),
        ("m = MatMul (x, w) y = com.microsoft.FastGelu (m, bias)", 1),
        ("m = MatMul (x, w) y = com.microsoft.BiasGelu (m, bias)", 0),
    ],
)
def test_which_gelu_it_was_is_kept(nodes, tanh):
    model = parse(GRAPH.format(nodes), w=WEIGHT, bias=BIAS)
    KernelBfloat16Pass()(model)
    assert only(model, "GeluBfloat16Linear").attributes["tanh"].as_int() == tanh


def test_what_others_read_too_stays_outside():
    text = """g (float[b, s, 64] x) => (float[b, s, 32] y, float[b, s, 32] a) {
        m = MatMul (x, w) a = Add (m, bias) y = Gelu (a)
    }"""
    model = parse(text, w=WEIGHT, bias=BIAS)
    KernelBfloat16Pass()(model)
    assert operators(model) == {"Bfloat16Linear": 1, "Gelu": 1}


@pytest.mark.parametrize("shape", [(64, 24), (48, 32)], ids=["half a tile", "depth"])
def test_products_that_are_no_whole_tiles_stay(shape):
    text = f"g (float[b, s, {shape[0]}] x) => (float[b, s, {shape[1]}] y) {{ y = MatMul (x, w) }}"
    model = parse(text, w=np.ones(shape, np.float32))
    KernelBfloat16Pass()(model)
    assert operators(model) == {"MatMul": 1}


def test_weights_are_rounded_as_ml_dtypes_rounds_and_stored_in_tiles():
    found = tiles(WEIGHT)
    expected = WEIGHT.astype(ml_dtypes.bfloat16).view(np.uint16)
    assert found.shape == (2, 32, 32)
    for column in range(32):
        for depth in range(64):
            assert found[column // 16, depth // 2, column % 16 * 2 + depth % 2] == expected[depth, column]
