"""One canonical attention in ONNX text, from the linears' outputs to the next linear's input, and its lowering."""

import numpy as np
import onnx_ir as ir
from onnx_text import only, parse, run

from piston.engines.lowering.group_query_attention import GroupQueryAttentionPass

HEADS, KV_HEADS, HEAD_DIM, CAPACITY, POSITIONS, WINDOW = 4, 2, 16, 40, 64, 7
STEPS = (  # (tokens, lengths before), one row unless it is a decode step; the later ones lie far beyond the window
    (5, [0]),
    (6, [5]),
    (12, [11]),
    (1, [23, 3, 11]),
    (1, [0, 39, 7]),
)

HEADER = """
layer (float[batch, seq, {width}] query, float[batch, seq, {kv_width}] key, float[batch, seq, {kv_width}] value,
       int64[batch, seq] position_ids, int64[batch] write_indices, int64[batch] kv_lengths,
       float[batch, {kv_heads}, capacity, {head_dim}] "past.0.key",
       float[batch, {kv_heads}, capacity, {head_dim}] "past.0.value")
   => (float[batch, seq, {width}] output, float[batch, {kv_heads}, capacity, {head_dim}] "present.0.key",
       float[batch, {kv_heads}, capacity, {head_dim}] "present.0.value")
"""
HEADS_APART = """
    q3 = Reshape (query, q_shape)
    k3 = Reshape (key, kv_shape)
    v3 = Reshape (value, kv_shape)
    q = Transpose <perm = [0, 2, 1, 3]> (q3)
    k = Transpose <perm = [0, 2, 1, 3]> (k3)
    v = Transpose <perm = [0, 2, 1, 3]> (v3)
"""
ROTARY = """
    qr = RotaryEmbedding (q, cos, sin, position_ids)
    kr = RotaryEmbedding (k, cos, sin, position_ids)
"""
NO_ROTARY = """
    qr = Identity (q)
    kr = Identity (k)
"""
SCATTER = """
    "present.0.key" = TensorScatter <axis = -2, mode = "linear"> ("past.0.key", kr, write_indices)
    "present.0.value" = TensorScatter <axis = -2, mode = "linear"> ("past.0.value", v, write_indices)
"""
CAUSAL = 'a = Attention <is_causal = 1, scale = 0.3> (qr, "present.0.key", "present.0.value", , , , kv_lengths)'
MASK = """
    size = Shape <start = 2, end = 3> ("past.0.key")
    stop = Squeeze (size)
    keys = Range (zero, stop, one)
    queries = Unsqueeze (position_ids, one_three)
    causal = LessOrEqual (keys, queries)
    far = Sub (queries, window)
    near = Greater (keys, far)
    mask = And (causal, near)
"""
WINDOWED = MASK + 'a = Attention <scale = 0.3> (qr, "present.0.key", "present.0.value", mask)'
HEADS_TOGETHER = """
    a3 = Transpose <perm = [0, 2, 1, 3]> (a)
    output = Reshape (a3, o_shape)
"""


def layer(*parts, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, rotary_dim=None):
    body = "".join(parts or (HEADS_APART, ROTARY, SCATTER, CAUSAL, HEADS_TOGETHER))
    sizes = {"heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    header = HEADER.format(width=heads * head_dim, kv_width=kv_heads * head_dim, **sizes)
    half = (rotary_dim or head_dim) // 2
    angles = np.arange(POSITIONS)[:, None] / 10 ** (np.arange(half) / half)
    rng = np.random.default_rng(3)
    model = parse(
        header + "{" + body + "}",
        q_shape=np.array([0, 0, heads, head_dim]),
        kv_shape=np.array([0, 0, kv_heads, head_dim]),
        o_shape=np.array([0, 0, heads * head_dim]),
        cos=np.cos(angles).astype(np.float32),
        sin=np.sin(angles).astype(np.float32),
        q_norm=1 + rng.standard_normal(head_dim).astype(np.float32) / 4,
        k_norm=1 + rng.standard_normal(head_dim).astype(np.float32) / 4,
        heads_dim=np.array([heads, head_dim]),
        zero=np.array(0),
        one=np.array(1),
        one_three=np.array([1, 3]),
        window=np.array(WINDOW),
    )
    ir.passes.common.IdentityEliminationPass()(model)  # NO_ROTARY only names its values
    return model


def step_feed(model, seq, lengths, seed):
    rng, rows = np.random.default_rng(seed), len(lengths)
    before = np.array(lengths)
    feed = {
        "position_ids": before[:, None] + np.arange(seq),
        "write_indices": before,
        "kv_lengths": before + seq,
    }
    for value in model.graph.inputs:
        if value.dtype == ir.DataType.FLOAT:
            sizes = {"batch": rows, "seq": seq, "capacity": CAPACITY}
            shape = [dim if isinstance(dim, int) else sizes[str(dim)] for dim in value.shape]
            feed[value.name] = rng.standard_normal(shape).astype(np.float32)
    return feed


def assert_lowered_equal(model, **attributes):
    """Lower the one layer, compare every step of STEPS, and check GroupQueryAttention's attributes."""
    feeds = [step_feed(model, seq, lengths, seed) for seed, (seq, lengths) in enumerate(STEPS)]
    expected = [run(model, feed) for feed in feeds]
    lowering = GroupQueryAttentionPass()
    assert lowering(model).modified
    assert not lowering.refused
    for feed, before in zip(feeds, expected, strict=True):
        after = run(model, feed)
        np.testing.assert_allclose(after["output"], before["output"], atol=2e-5)
        for name in ("present.0.key", "present.0.value"):
            for row, length in enumerate(feed["kv_lengths"]):
                np.testing.assert_allclose(after[name][row, :, :length], before[name][row, :, :length], atol=2e-5)
    found = only(model, "GroupQueryAttention").attributes
    assert {name: found[name].value for name in attributes} == attributes


def assert_refused(model, reason):
    lowering = GroupQueryAttentionPass()
    before = ir.to_proto(model).SerializeToString()
    assert not lowering(model).modified
    assert [reason in found for found in lowering.refused.values()] == [True]
    assert ir.to_proto(model).SerializeToString() == before
