"""Operators of encoder-decoders against their definitions in numpy, on the vector unit and, if there are any, tiles."""

import numpy as np
import pytest
from kernel_cases import SCALE, assert_codes, linear, tiled
from own_kernels import run_alone

POSITIONS = 150


class Sources:
    """Random queries of some rows and sources of theirs, and what attention over these must give: in float64."""

    def __init__(self, lengths, seq, *, heads=4, kv_heads=4, dim=32, seed=0):
        rng = np.random.default_rng(seed)
        self.lengths, self.heads = None if lengths is None else np.array(lengths, np.int64), heads
        rows = 2 if lengths is None else len(lengths)
        self.query = rng.standard_normal((rows, seq, heads * dim)).astype(np.float32)
        shape = (rows, kv_heads, POSITIONS, dim)
        self.key, self.value = (rng.standard_normal(shape).astype(np.float32) for _ in range(2))

    def run(self, *, codes=False, threads=2):
        inputs = [self.query, self.key, self.value, self.lengths, SCALE if codes else None]
        while inputs[-1] is None:
            inputs.pop()
        name = "CrossAttention" + "Codes" * codes
        return run_alone(name, inputs, threads=threads, num_heads=self.heads, scale=0.2)[0]

    def expected(self):
        rows, seq, width = self.query.shape
        query = self.query.astype(np.float64).reshape(rows, seq, self.heads, -1)
        group = self.heads // self.key.shape[1]
        key, value = (np.repeat(part.astype(np.float64), group, axis=1) for part in (self.key, self.value))
        scores = 0.2 * np.einsum("rqhd,rhkd->rhqk", query, key)
        if self.lengths is not None:
            scores = np.where(np.arange(POSITIONS) < self.lengths[:, None, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("rhqk,rhkd->rqhd", weights / weights.sum(axis=-1, keepdims=True), value)
        return out.reshape(rows, seq, width)


SOURCES = [
    pytest.param([1, 150, 64], 1, {}, id="a step"),
    pytest.param([65, 7], 3, {"heads": 6, "kv_heads": 2, "dim": 64}, id="a few tokens that share keys"),
    pytest.param(None, 1, {"heads": 8, "kv_heads": 8, "dim": 64}, id="whole sources"),
    pytest.param([20, 149], 40, {"dim": 96}, id="a prompt"),
    pytest.param(None, 21, {}, id="a prompt over whole sources"),
]


@pytest.mark.parametrize(("lengths", "seq", "sizes"), SOURCES)
def test_cross_attention_is_softmax_over_the_positions_of_the_source(level, lengths, seq, sizes):
    sources = Sources(lengths, seq, **sizes)
    expected = sources.expected()
    np.testing.assert_allclose(sources.run(), expected, atol=3e-5 * np.abs(expected).max())
    assert_codes(sources.run(codes=True), expected, SCALE)


@pytest.mark.parametrize("seq", [1, 40])
def test_what_lies_beyond_a_source_changes_no_bit(level, seq):
    sources = Sources([20, 101], seq)
    expected = sources.run()
    for row, length in enumerate(sources.lengths):
        sources.key[row, :, length:] = np.nan
        sources.value[row, :, length:] = np.inf
    np.testing.assert_array_equal(sources.run(threads=5), expected)


def test_a_text_without_lengths_is_read_to_its_end(level):
    rng = np.random.default_rng(0)
    parts = [rng.standard_normal((2, 70, 96)).astype(np.float32) for _ in range(3)]
    for name, scale in (("BidirectionalAttention", []), ("BidirectionalAttentionCodes", [SCALE])):
        (whole,) = run_alone(name, [*parts, None, *scale], num_heads=3, scale=0.2)
        (given,) = run_alone(name, [*parts, np.array([70, 70]), *scale], num_heads=3, scale=0.2)
        np.testing.assert_array_equal(whole, given)


@pytest.mark.parametrize("codes", [False, True], ids=["floats", "codes"])
@pytest.mark.parametrize("seq", [1, 40])
def test_attention_without_tables_is_that_of_angle_zero(level, seq, codes):
    rng = np.random.default_rng(seq)
    packed = rng.standard_normal((2, seq, 3 * 128)).astype(np.float32)
    caches = [rng.standard_normal((2, 4, 100, 32)).astype(np.float32) for _ in range(2)]
    last = np.array([seq + 8, seq + 50], np.int32)
    tables = [np.ones((100, 16), np.float32), np.zeros((100, 16), np.float32)]
    found, expected = (
        run_alone(
            "Attention" + "Codes" * codes,
            [packed, *caches, last, *given, *([None, None, SCALE] if codes else [])],
            3,
            num_heads=4,
            scale=0.2,
        )
        for given in ([None, None] if codes else [], tables)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "function"), [("Silu", lambda x: x / (1 + np.exp(-x))), ("Relu", lambda x: x.clip(0))]
)
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (40, 80)])
def test_a_layer_ends_in_its_activation_function(level, name, function, rows, width):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, 64, width)
    scale, bias = scale * np.float32(0.05), rng.standard_normal(width).astype(np.float32)
    expected, inputs = function(exact * 0.05 + bias), [codes, tiled(weight), offset, scale, bias]
    (found,) = run_alone(f"{name}Linear", inputs)
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())
    step, coarse = (np.float32(np.abs(expected).max() / 127 / by) for by in (16, 1))
    fine, rest = run_alone(f"{name}LinearCodes", [*inputs, step, None, coarse], [True, False, True])
    assert_codes(fine, expected, step)
    assert_codes(rest, found - (fine.astype(np.float32) - 128) * step, coarse)
