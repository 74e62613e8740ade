import onnx_ir as ir
import pytest
from attention_text import CAUSAL, HEADS_APART, HEADS_TOGETHER, ROTARY, SCATTER, WINDOWED, assert_refused, layer


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
