import onnx_ir as ir
import pytest
from attention_text import (
    CAUSAL,
    HEADS_APART,
    HEADS_TOGETHER,
    ROTARY,
    SCATTER,
    WINDOWED,
    assert_lowered_equal,
    assert_refused,
    layer,
)
from onnx_text import only


def test_a_window_that_is_also_causal_over_lengths_is_refused():
    mask = WINDOWED.replace("<scale", "<is_causal = 1, scale")
    assert_refused(layer(HEADS_APART, ROTARY, SCATTER, mask, HEADS_TOGETHER), "not the canonical sliding window")


@pytest.mark.parametrize(
    ("part", "old", "new", "reason"),
    [
        (CAUSAL, ", , , , kv_lengths", "", "not causal over kv_lengths"),
        (CAUSAL, "is_causal = 1, ", "", "not causal over kv_lengths"),
        (CAUSAL, "kv_lengths", "write_indices", "not causal over kv_lengths"),
        (CAUSAL, "scale = 0.3", "scale = 0.3, softmax_precision = 1", "no softmax_precision"),
        (CAUSAL, '"present.0.value"', "v", "values are not the cache itself"),
        (CAUSAL, '"present.0.value"', '"present.0.key"', "keys have other readers"),
        (SCATTER, 'mode = "linear"> ("past.0.key"', 'mode = "circular"> ("past.0.key"', "along the capacity"),
        (SCATTER, '("past.0.key", kr, write_indices)', '("past.0.key", kr, kv_lengths)', "not written at"),
        (SCATTER, '("past.0.key", kr, write_indices)', '("past.0.key", kr)', "not written at"),
        (SCATTER, '("past.0.value"', "(doubled", "not a cache of the graph's interface"),
    ],
)  # fmt: skip
def test_what_does_not_fit_stays_canonical(part, old, new, reason):
    assert old in part
    doubled = 'doubled = Add ("past.0.value", "past.0.value")\n'
    parts = [HEADS_APART, ROTARY, doubled, SCATTER, CAUSAL, HEADS_TOGETHER]
    parts[parts.index(part)] = part.replace(old, new)
    model = layer(*parts)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert_refused(model, reason)


def test_a_head_dim_the_kernel_refuses_stays_canonical():
    assert_refused(layer(head_dim=12), "head_dim 12 is no multiple of 8")


def test_heads_that_do_not_share_keys_evenly_stay_canonical():
    assert_refused(layer(heads=3, kv_heads=2), "3 heads are no multiple of 2")


def test_a_past_that_attention_concatenates_stays_canonical():
    past = CAUSAL.replace(", , , , kv_lengths", ", , qr, qr").replace("a =", "a, pk, pv =")
    assert_refused(layer(HEADS_APART, ROTARY, SCATTER, past, HEADS_TOGETHER, kv_heads=4), "several results")


def test_an_attention_on_merged_heads_stays_canonical():
    merged = CAUSAL.replace("(qr", "(query").replace("scale", "q_num_heads = 4, kv_num_heads = 2, scale")
    together = "output = Identity (a)"
    keys = 'key, "present.0.value"'
    model = layer(HEADS_APART, ROTARY, SCATTER, merged.replace('"present.0.key", "present.0.value"', keys), together)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert_refused(model, "is not [batch, heads, seq, head_dim]")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kr = RotaryEmbedding (", "kr = RotaryEmbedding <interleaved = 1> ("),
        ("(k, cos, sin,", "(k, sin, cos,"),
        ("kr = RotaryEmbedding (k, cos, sin, position_ids)", "kr = Neg (k)"),
        ("cos, sin", "cos2, sin"),
    ],
    ids=["one interleaved", "tables exchanged", "one not rotated", "a computed table"],
)
def test_rotary_that_is_not_the_same_for_both_stays_outside(old, new):
    rotary = ROTARY.replace(old, new)
    cosine = "cos2 = Identity (cos)\n" if "cos2" in rotary else ""
    model = layer(HEADS_APART, cosine.replace("Identity", "Abs"), rotary, SCATTER, CAUSAL, HEADS_TOGETHER)
    assert_lowered_equal(model)
    assert "do_rotary" not in only(model, "GroupQueryAttention").attributes
