import ml_dtypes
import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, only, operators, parse, random_feed

from piston.engines.lowering.pack_linears import PackLinearsPass

GATED = """
g (float[batch, seq, 8] x) => (float[batch, seq, 6] y)
{
    gate = MatMul (x, gate_weight)
    up = MatMul (x, up_weight)
    y = Mul (gate, up)
}
"""
BIASED = """
g (float[batch, seq, 8] x) => (float[batch, seq, 6] y, float[batch, seq, 6] gate)
{
    a = MatMul (x, gate_weight)
    gate = Add (a, gate_bias)
    b = MatMul (x, up_weight)
    up = Add (up_bias, b)
    y = Mul (gate, up)
}
"""
ATTENTION = """
g (float[batch, seq, 8] x, float[batch, 1, capacity, 16] pk, float[batch, 1, capacity, 16] pv, int32[batch] lengths,
   int32 total)
   => (float[batch, seq, 32] y, float[batch, 1, capacity, 16] nk, float[batch, 1, capacity, 16] nv,
       float[batch, seq, 6] m)
   <float[batch, seq, 32] y>
{
    v = MatMul (x, v_weight)
    m = MatMul (x, up_weight)
    k = MatMul (x, k_weight)
    q = MatMul (x, q_weight)
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (q, k, v, pk, pv, lengths, total)
}
"""
WIDTHS = {"gate_weight": 6, "up_weight": 6, "q_weight": 32, "k_weight": 16, "v_weight": 16}


def model_of(text, **changes):
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((8, width)) for name, width in WIDTHS.items() if name in text}
    weights |= {name: rng.standard_normal(6) for name in ("gate_bias", "up_bias") if name in text}
    return parse(text, **{name: array.astype(np.float32) for name, array in (weights | changes).items()})


def attention_feed(model):
    feed = random_feed(model, batch=1, seq=3, capacity=8)
    return feed | {"lengths": np.array([4], np.int32), "total": np.array(5, np.int32)}


def packed_weight(model):
    return only(model, "MatMul").inputs[1].const_value


@pytest.mark.parametrize("text", [GATED, BIASED], ids=["plain", "biased"])
def test_linears_on_one_input_become_one_where_cutting_is_allowed(text):
    model = model_of(text)
    assert_same_outputs(model, PackLinearsPass(cut=True), random_feed(model, batch=2, seq=3))
    biases = {"Add": 1} if text is BIASED else {}
    assert operators(model) == {"MatMul": 1, **biases, "Split": 1, "Mul": 1}
    assert list(packed_weight(model).shape) == [8, 12]


def test_linears_that_would_have_to_be_cut_apart_stay_unless_that_is_allowed():
    assert_untouched(model_of(GATED), PackLinearsPass())


def test_a_bias_that_not_all_have_stays_outside():
    model = model_of(BIASED.replace("up = Add (up_bias, b)", "up = Identity (b)"))
    assert_same_outputs(model, PackLinearsPass(cut=True), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"MatMul": 1, "Split": 1, "Add": 1, "Identity": 1, "Mul": 1}


def test_query_key_and_value_are_packed_in_this_order_without_their_neighbour():
    model = model_of(ATTENTION)
    expected = np.concatenate(
        [model.graph.initializers[f"{part}_weight"].const_value.numpy() for part in "qkv"], axis=1
    )
    lowering = PackLinearsPass()
    assert_same_outputs(model, lowering, attention_feed(model))
    assert lowering.packed == [3]
    packed = [node.inputs[1] for node in model.graph if node.op_type == "MatMul"]
    assert [value.name for value in packed] == ["q_weight+k_weight+v_weight", "up_weight"]
    np.testing.assert_array_equal(packed[0].const_value.numpy(), expected)


def test_attention_is_not_packed_with_its_neighbour_even_where_cutting_is_allowed():
    model = model_of(ATTENTION.replace("m = MatMul (x, up_weight)", "m1 = MatMul (x, up_weight)\n m = Neg (m1)"))
    lowering = PackLinearsPass(cut=True)
    assert_same_outputs(model, lowering, attention_feed(model))
    assert lowering.packed == [3]


def test_a_norm_on_the_way_to_attention_forbids_packing_unless_cutting_is_allowed():
    text = ATTENTION.replace("q = MatMul (x, q_weight)", "q0 = MatMul (x, q_weight)\n q = RMSNormalization (q0, norm)")
    norm = np.ones(32)
    assert_untouched(model_of(text, norm=norm), PackLinearsPass())
    model = model_of(text, norm=norm)
    assert_same_outputs(model, PackLinearsPass(cut=True), attention_feed(model))
    assert operators(model)["Split"] == 1


@pytest.mark.parametrize(
    "text",
    [
        GATED.replace("MatMul (x, up_weight)", "Neg (gate)"),
        GATED.replace("up = MatMul (x, up_weight)", "z = Neg (x)\n up = MatMul (z, up_weight)"),
        GATED.replace("up = MatMul (x, up_weight)", "z = Neg (up_weight)\n up = MatMul (x, z)"),
    ],
    ids=["one linear", "two inputs", "a computed weight"],
)
def test_what_is_no_group_stays(text):
    assert_untouched(model_of(text), PackLinearsPass(cut=True))


def test_packed_weights_are_made_when_they_are_read():
    model = model_of(GATED)
    PackLinearsPass(cut=True)(model)
    assert packed_weight(model).numpy() is not packed_weight(model).numpy()


DEQUANTIZED = """
g (float[batch, seq, 8] x) => (float[batch, seq, 6] y)
{
    gate_w = DequantizeLinear <HOW> (gate_codes, gate_scales)
    gate = MatMul (x, gate_w)
    up_w = DequantizeLinear <HOW> (up_codes, up_scales)
    up = MatMul (x, up_w)
    y = Mul (gate, up)
}
"""


def quantized(how="axis = 1", shape=(6,), bits="int8", text=DEQUANTIZED, **changes):
    rng = np.random.default_rng(0)
    values = {f"{name}_codes": rng.integers(-8, 8, (8, 6)).astype(bits) for name in ("gate", "up")}
    values |= {f"{name}_scales": rng.uniform(0.1, 0.2, shape).astype(np.float32) for name in ("gate", "up")}
    used = {name: value for name, value in (values | changes).items() if f"{name}," in text or f"{name})" in text}
    return parse(text.replace("HOW", how), **used)


@pytest.mark.parametrize(
    ("how", "shape"), [("axis = 0, block_size = 4", (2, 6)), ("axis = 1", (6,))], ids=["blocks", "channels"]
)
@pytest.mark.parametrize("bits", ["int8", ml_dtypes.int4], ids=["8", "4"])
def test_codes_and_scales_are_packed_as_weights_are(how, shape, bits):
    model = quantized(how, shape, bits)
    assert_same_outputs(model, PackLinearsPass(cut=True), random_feed(model, batch=2, seq=3))
    assert operators(model) == {"DequantizeLinear": 1, "MatMul": 1, "Split": 1, "Mul": 1}
    assert list(only(model, "DequantizeLinear").inputs[0].shape) == [8, 12]


def test_weights_of_other_bits_are_not_packed_together():
    assert_untouched(quantized(up_codes=np.ones((8, 6), ml_dtypes.int4)), PackLinearsPass(cut=True))


def test_codes_and_floats_are_not_packed_together():
    text = DEQUANTIZED.replace("up_w = DequantizeLinear <HOW> (up_codes, up_scales)", "")
    assert_untouched(quantized(text=text, up_w=np.ones((8, 6), np.float32)), PackLinearsPass(cut=True))
