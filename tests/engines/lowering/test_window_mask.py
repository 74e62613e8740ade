import onnx_ir as ir
import pytest
from attention_text import (
    HEADS_APART,
    HEADS_TOGETHER,
    ROTARY,
    SCATTER,
    WINDOW,
    WINDOWED,
    assert_lowered_equal,
    assert_refused,
    layer,
)
from onnx_text import operators


def test_the_window_of_a_mask_is_the_kernels_window():
    model = layer(HEADS_APART, ROTARY, SCATTER, WINDOWED, HEADS_TOGETHER)
    assert_lowered_equal(model, local_window_size=WINDOW)
    assert operators(model) == {"Sub": 1, "ReduceMax": 1, "Cast": 2, "GroupQueryAttention": 1}


def test_the_window_is_recognised_in_either_order():
    mask = WINDOWED.replace("And (causal, near)", "And (near, causal)")
    assert_lowered_equal(layer(HEADS_APART, ROTARY, SCATTER, mask, HEADS_TOGETHER), local_window_size=WINDOW)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LessOrEqual (keys", "Less (keys"),
        ("Greater (keys", "GreaterOrEqual (keys"),
        ("And (", "Or ("),
        ("Sub (queries, window)", "Add (queries, window)"),
        ("Range (zero", "Range (one"),
        ("start = 2, end = 3", "start = 1, end = 2"),
        ("Unsqueeze (position_ids", "Unsqueeze (doubled"),
        ("near = Greater (keys", "near = Greater (causal_keys"),
    ],
)
def test_a_mask_that_computes_something_else_is_not_a_window(old, new):
    mask = WINDOWED.replace(old, new)
    assert mask != WINDOWED
    extra = "doubled = Add (position_ids, position_ids)\n causal_keys = Add (keys, one)\n"
    head, tail = mask.split("queries =")
    model = layer(HEADS_APART, ROTARY, SCATTER, head + extra + "queries =" + tail, HEADS_TOGETHER)
    ir.passes.common.RemoveUnusedNodesPass()(model)
    assert_refused(model, "not the canonical sliding window")
