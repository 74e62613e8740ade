import numpy as np
from onnx_text import assert_same_outputs, assert_untouched, parse, random_feed

from piston.engines.lowering.trim_rotary import TrimRotaryPass

TEXT = """
g (float[batch, seq, 64] qkv, float[batch, 1, capacity, 16] pk, float[batch, 1, capacity, 16] pv, int32[batch] lengths,
   int32 total, float[batch, 2, seq, 16] x, int64[batch, seq] position_ids)
   => (float[batch, seq, 32] y, float[batch, 1, capacity, 16] nk, float[batch, 1, capacity, 16] nv,
       float[batch, 2, seq, 16] z)
{
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1, do_rotary = 1>
        (qkv, , , pk, pv, lengths, total, cos, sin)
    z = RotaryEmbedding (x, cos, sin, position_ids)
}
"""
POSITIONS, ASKED = 32, 12


def model_of():
    angles = np.arange(POSITIONS)[:, None] / 10 ** (np.arange(8) / 8)
    return parse(TEXT, cos=np.cos(angles).astype(np.float32), sin=np.sin(angles).astype(np.float32))


def test_tables_end_where_asked_and_rotate_as_before():
    model = model_of()
    feed = random_feed(model, batch=1, seq=4, capacity=ASKED)
    feed |= {"lengths": np.array([ASKED - 1], np.int32), "total": np.array(ASKED, np.int32)}
    feed["position_ids"] = np.arange(ASKED - 4, ASKED)[None]
    assert_same_outputs(model, TrimRotaryPass(ASKED), feed)
    shapes = [list(value.const_value.shape) for value in model.graph.initializers.values()]
    assert shapes == [[ASKED, 8], [ASKED, 8]]


def test_shorter_tables_stay():
    assert_untouched(model_of(), TrimRotaryPass(POSITIONS))
