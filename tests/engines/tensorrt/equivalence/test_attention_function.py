"""The function that stands for TRT_Attention, against loops in numpy."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser

from piston.engines.tensorrt.equivalence.attention_function import attach

HEADS, KV_HEADS, WIDTH, SEQ, CAPACITY, BATCH = 4, 2, 8, 3, 9, 2
FORMS = 'query_form = "padded_bhnd", kv_form = "padded_bhnd"'
CALLS = {
    "lower_right": f'trt.TRT_Attention <causal_kind = "lower_right", {FORMS}> (q, k, v, , , lengths)',
    "upper_left": f'trt.TRT_Attention <causal_kind = "upper_left", {FORMS}> (q, k, v)',
    "none": f'trt.TRT_Attention <causal_kind = "none", {FORMS}> (q, k, v, mask)',
    "lengths": f'trt.TRT_Attention <causal_kind = "none", {FORMS}> (q, k, v, , , lengths)',
    "whole": f'trt.TRT_Attention <causal_kind = "none", {FORMS}> (q, k, v)',
}
INPUTS = {
    "q": f"float[b, {HEADS}, s, {WIDTH}] q",
    "k": f"float[b, {KV_HEADS}, {CAPACITY}, {WIDTH}] k",
    "v": f"float[b, {KV_HEADS}, {CAPACITY}, {WIDTH}] v",
    "lengths": "int64[b] lengths",
    "mask": f"bool[b, 1, s, {CAPACITY}] mask",
}


def run(call, feed):
    signature = ", ".join(INPUTS[name] for name in feed)
    header = '<ir_version: 10, opset_import: ["" : 24, "trt" : 1]>'
    text = f"{header} g ({signature}) => (float[b, h, s, d] y) {{ y = {call} }}"
    model = parser.parse_model(text)
    attach(model)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def by_loops(query, key, value, may_look):
    result = np.zeros_like(query)
    for batch, head, row in np.ndindex(query.shape[:3]):
        kv_head = head // (HEADS // KV_HEADS)
        seen = [column for column in range(CAPACITY) if may_look(batch, row, column)]
        scores = np.array([query[batch, head, row] @ key[batch, kv_head, column] for column in seen])
        weights = np.exp(scores - scores.max())
        result[batch, head, row] = weights / weights.sum() @ value[batch, kv_head, seen]
    return result


@pytest.mark.parametrize("kind", CALLS)
def test_it_means_what_is_documented(kind):
    rng = np.random.default_rng(3)
    feed = {
        "q": rng.standard_normal((BATCH, HEADS, SEQ, WIDTH), np.float32),
        "k": rng.standard_normal((BATCH, KV_HEADS, CAPACITY, WIDTH), np.float32),
        "v": rng.standard_normal((BATCH, KV_HEADS, CAPACITY, WIDTH), np.float32),
    }
    lengths, mask = np.array([4, 9]), rng.random((BATCH, 1, SEQ, CAPACITY)) < 0.6
    mask[..., 0] = True
    rules = {
        "lower_right": lambda batch, row, column: column <= row + lengths[batch] - SEQ,
        "upper_left": lambda _, row, column: column <= row,
        "none": lambda batch, row, column: mask[batch, 0, row, column],
        "lengths": lambda batch, _, column: column < lengths[batch],
        "whole": lambda *_: True,
    }
    inputs = {"lower_right": {"lengths": lengths}, "lengths": {"lengths": lengths}, "none": {"mask": mask}}
    extra = inputs.get(kind, {})
    found = run(CALLS[kind], {**feed, **extra})
    np.testing.assert_allclose(found, by_loops(*feed.values(), rules[kind]), atol=2e-6)
