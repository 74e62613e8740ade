import numpy as np
import pytest
from onnx_text import assert_same_outputs, assert_untouched, operators, parse, random_feed

from piston.engines.lowering.packed_qkv import PackedQkvPass

TEXT = """
g (float[batch, seq, 64] x, float[batch, 1, capacity, 16] pk, float[batch, 1, capacity, 16] pv, int32[batch] lengths,
   int32 total)
   => (float[batch, seq, 32] y, float[batch, 1, capacity, 16] nk, float[batch, 1, capacity, 16] nv)
{
    CUT
    y, nk, nv = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 1> (q, k, v, pk, pv, lengths, total)
}
"""
SPLIT = "q, k, v = Split <axis = -1> (x, sizes)"
SLICES = """
    q = Slice (x, s0, s32, axis, one)
    k = Slice (x, s32, s48, axis, one)
    v = Slice (x, s48, end, axis, one)
"""


def model_of(cut):
    numbers = {"s0": 0, "s16": 16, "s32": 32, "s48": 48, "s64": 64, "end": 2**62, "axis": 2, "one": 1, "two": 2}
    arrays = {name: np.array([number]) for name, number in numbers.items()}
    return parse(TEXT.replace("CUT", cut), sizes=np.array([32, 16, 16]), mixed=np.array([16, 32, 16]), **arrays)


@pytest.mark.parametrize("cut", [SPLIT, SLICES], ids=["split", "slices"])
def test_what_is_cut_from_one_tensor_goes_in_uncut(cut):
    model = model_of(cut)
    feed = random_feed(model, batch=1, seq=3, capacity=8)
    feed |= {"lengths": np.array([4], np.int32), "total": np.array(5, np.int32)}
    lowering = PackedQkvPass()
    assert_same_outputs(model, lowering, feed)
    assert operators(model) == {"GroupQueryAttention": 1}
    assert lowering.packed == 1


@pytest.mark.parametrize(
    "cut",
    [
        "k, q, v = Split <axis = -1> (x, mixed)",
        "q, v, k = Split <axis = -1> (x, sizes)",
        SLICES.replace("s48, end", "s32, s48"),
        SLICES.replace("s32, s48", "s16, s32"),
        SLICES.replace("s0, s32", "s16, s48"),
        SLICES.replace("q = Slice (x", "z = Neg (x)\n q = Slice (z"),
        SPLIT.replace("q, k", "q1, k") + "\n q = Neg (q1)",
    ],
    ids=[
        "key first",
        "value second",
        "not to the end",
        "overlapping",
        "not from zero",
        "two origins",
        "changed on the way",
    ],
)
def test_other_cuts_stay(cut):
    assert_untouched(model_of(cut), PackedQkvPass())
