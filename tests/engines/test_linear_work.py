import numpy as np
import pytest
from onnx_text import parse

from piston.engines.linear_work import linear_work

TEXT = """
g (float[batch, 32] x) => (float[batch, 40] logits)
{
    q = QuantizeLinear (x, scale, zero)
    a = com.microsoft.MatMulIntegerToFloat (q, codes, scale, scales, zero)
    b = com.microsoft.MatMulNBits <K = 16, N = 24, bits = 4, block_size = 16> (a, packed, packed_scales)
    c = MatMul (b, plain)
    swapped = Transpose (embedding)
    logits = MatMul (c, swapped)
}
"""
VALUES = {
    "scale": np.float32(0.1),
    "zero": np.uint8(128),
    "codes": np.ones((32, 16), np.int8),
    "scales": np.ones(16, np.float32),
    "packed": np.ones((24, 1, 8), np.uint8),
    "packed_scales": np.ones(24, np.float32),
    "plain": np.ones((24, 8), np.float32),
    "embedding": np.ones((40, 8), np.float32),
}


def test_multiply_adds_are_counted_by_arithmetic_and_the_head_apart():
    work = linear_work(parse(TEXT, **VALUES).graph)
    assert work.layers == {"int8": 32 * 16, "weights4": 16 * 24, "float": 24 * 8}
    assert work.head == {"float": 40 * 8}
    assert work.in_float == ["c"]
    assert work.unfused == {}
    assert work.share("int8") == pytest.approx(512 / 1088)
    assert work.share("weights8") == 0


REMAINDER = """
g (float[batch, 32] x) => (float[batch, 16] y)
{
    q = QuantizeLinear (x, scale, zero)
    a = com.microsoft.MatMulIntegerToFloat (q, codes, scale, scales, zero)
    p = DequantizeLinear (q, scale, zero)
    rest = Sub (OTHER, p)
    r = QuantizeLinear (rest, coarse, zero)
    b = com.microsoft.MatMulIntegerToFloat (r, codes, coarse, scales, zero)
    y = Add (a, b)
}
"""


def test_a_matrix_that_multiplies_a_remainder_too_is_counted_once():
    work = linear_work(parse(REMAINDER.replace("OTHER", "x"), coarse=np.float32(0.7), **VALUES).graph)
    assert work.layers == {"int8": 32 * 16}
    assert work.unfused == {}


def test_a_layer_whose_remainder_is_multiplied_in_float_is_in_float():
    text = REMAINDER.replace("OTHER", "x").replace(
        "b = com.microsoft.MatMulIntegerToFloat (r, codes, coarse, scales, zero)",
        "w = DequantizeLinear <axis = 1> (codes, scales)\n    b = MatMul (rest, w)",
    )
    assert linear_work(parse(text, coarse=np.float32(0.7), **VALUES).graph).layers == {"float": 32 * 16}


def test_what_is_subtracted_from_another_value_is_no_remainder():
    text = REMAINDER.replace("OTHER", "z").replace("rest =", "z = Neg (x)\n    rest =")
    assert list(linear_work(parse(text, coarse=np.float32(0.7), **VALUES).graph).unfused) == ["p"]


def test_a_product_of_two_activations_is_no_linear_layer():
    text = "g (float[a, 4] x, float[4, 4] y) => (float[a, 4] z) { z = MatMul (x, y) }"
    assert linear_work(parse(text).graph).layers == {}


REASONS = {
    "a weight": ("y = MatMul (x, w)", "w", "a weight that is dequantized at every step: its blocks are of a size"),
    "read otherwise": ("y = Gemm (x, w)", "w", "a weight that is dequantized at every step: read by Gemm"),
    "a float weight": ("y = MatMul (p, plain)", "p", "y_node has a float weight"),
    "another operator": ("y = Neg (p)", "p", "y_node is no linear layer"),
    "two wrongs": ("y = MatMul (p, w)", "p", "y_node or the pair is not symmetric"),
}


@pytest.mark.parametrize("name", REASONS)
def test_what_was_not_fused_is_named_with_the_reason(name):
    line, left, reason = REASONS[name]
    model = parse(
        "g (float[a, 8] x) => (float[a, 8] y) { w = DequantizeLinear <axis = 0, block_size = 4> (codes, scales)\n"
        " q = QuantizeLinear (x, scale, zero)\n p = DequantizeLinear (q, scale, zero)\n " + line + " }",
        codes=np.ones((8, 8), np.int8),
        scales=np.ones((2, 8), np.float32),
        scale=np.float32(0.1),
        zero=np.uint8(3),
        plain=np.ones((8, 8), np.float32),
    )
    model.graph[-1].name = "y_node"
    assert linear_work(model.graph).unfused[left].startswith(reason)
