"""Operators of encoders against their definitions in numpy, on the vector unit and, where there are some, on tiles."""

import numpy as np
import pytest
from kernel_cases import SCALE, assert_codes, gelu, linear, tiled
from own_kernels import run_alone

DIM = 32


class Texts:
    """Random heads of texts of some lengths, padded, and what their attention must give: in float64."""

    def __init__(self, lengths, *, seq=None, heads=4, dim=DIM, bias=None, seed=0):
        rng = np.random.default_rng(seed)
        self.lengths, self.heads, self.dim = np.array(lengths, np.int64), heads, dim
        shape = (len(lengths), seq or max(lengths), heads * dim)
        self.parts = [rng.standard_normal(shape).astype(np.float32) for _ in range(3)]
        self.bias = None if bias is None else rng.standard_normal(bias).astype(np.float32)

    def run(self, *, codes=False, packed=False, threads=2):
        parts = [np.concatenate(self.parts, axis=-1), None, None] if packed else self.parts
        inputs = [*parts, self.lengths, SCALE if codes else None, self.bias]
        while inputs[-1] is None:
            inputs.pop()
        name = "BidirectionalAttention" + "Codes" * codes
        return run_alone(name, inputs, threads=threads, num_heads=self.heads, scale=0.2)[0]

    def expected(self):
        rows, seq, width = self.parts[0].shape
        query, key, value = (part.astype(np.float64).reshape(rows, seq, self.heads, self.dim) for part in self.parts)
        scores = 0.2 * np.einsum("rqhd,rkhd->rhqk", query, key) + (0 if self.bias is None else self.bias)
        scores = np.where(np.arange(seq) < self.lengths[:, None, None, None], scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out = np.einsum("rhqk,rkhd->rqhd", weights / weights.sum(axis=-1, keepdims=True), value)
        return out.reshape(rows, seq, width)

    def is_token(self):
        return np.arange(self.parts[0].shape[1]) < self.lengths[:, None]


TEXTS = [
    pytest.param([1], {}, id="one token"),
    pytest.param([7, 1, 12, 3], {}, id="short"),
    pytest.param([130, 64, 65, 2], {"heads": 3, "dim": 64}, id="several spans"),
    pytest.param([31, 40], {"heads": 2, "dim": 96, "seq": 50}, id="padding in every row"),
    pytest.param([20, 70], {"bias": (1, 4, 70, 70)}, id="bias of positions"),
    pytest.param([20, 70], {"bias": (2, 1, 1, 70)}, id="bias of texts"),
]


@pytest.mark.parametrize(("lengths", "sizes"), TEXTS)
@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_attention_of_texts_is_softmax_over_their_tokens(level, lengths, sizes, packed):
    texts = Texts(lengths, **sizes)
    expected, found, is_token = texts.expected(), texts.run(packed=packed), texts.is_token()
    np.testing.assert_allclose(found[is_token], expected[is_token], atol=3e-5 * np.abs(expected).max())
    assert not found[~is_token].any()
    codes = texts.run(packed=packed, codes=True)
    assert_codes(codes[is_token], expected[is_token], SCALE)
    assert (codes[~is_token] == 128).all()


@pytest.mark.parametrize("sizes", [{}, {"bias": (1, 4, 90, 90)}], ids=["plain", "bias"])
def test_a_text_gets_the_same_bits_alone_and_padded_beside_others(level, sizes):
    texts = Texts([90, 5, 33, 17, 64], **sizes)
    together = texts.run()
    for row, length in enumerate(texts.lengths):
        alone = Texts([length])
        alone.parts = [np.ascontiguousarray(part[row : row + 1, :length]) for part in texts.parts]
        alone.bias = None if texts.bias is None else np.ascontiguousarray(texts.bias[..., :length, :length])
        np.testing.assert_array_equal(alone.run()[0], together[row, :length])


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_any_number_of_threads_gives_a_text_the_same_bits(level, threads):
    texts = Texts([300, 5])
    np.testing.assert_array_equal(texts.run(threads=threads), texts.run(threads=2))


@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
@pytest.mark.parametrize(("rows", "width"), [(1, 48), (7, 64), (40, 80)])
def test_a_layer_with_gelu_is_gelu_of_the_product_and_its_bias(level, rows, width, tanh):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, 64, width)
    scale, bias = scale * np.float32(0.05), rng.standard_normal(width).astype(np.float32)
    values = exact * 0.05 + bias
    expected, inputs = gelu(values, tanh=tanh), [codes, tiled(weight), offset, scale, bias]
    (found,) = run_alone("GeluLinear", inputs, tanh=int(tanh))
    np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(values).max())
    channels = np.array([0, 17, width - 1])
    step, coarse = np.float32(np.abs(expected).max() / 127 / 16), np.float32(np.abs(expected).max() / 127)
    fine, picked, rest = run_alone("GeluLinearCodes", [*inputs, step, channels, coarse], 3, tanh=int(tanh))
    assert_codes(fine, expected, step)
    np.testing.assert_array_equal(picked, found[..., channels])
    assert_codes(rest, found - (fine.astype(np.float32) - 128) * step, coarse)


@pytest.mark.parametrize("tanh", [False, True], ids=["erf", "tanh"])
def test_gelu_of_any_size_is_finite(level, tanh):
    values = np.array([-3e38, -1e9, -90, -14, -5, -1e-20, 0, 1e-20, 5, 14, 90, 1e9, 3e38, 1, -1, 0.5], np.float32)
    codes = np.full((1, 1, 64), 128, np.uint8)
    weight, zeros = np.zeros((64, 16), np.int8), np.zeros(16, np.int32)
    (found,) = run_alone("GeluLinear", [codes, tiled(weight), zeros, np.ones(16, np.float32), values], tanh=int(tanh))
    with np.errstate(over="ignore"):
        expected = gelu(values.astype(np.float64), tanh=tanh)
    np.testing.assert_allclose(found[0, 0], expected, rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("has_skip", [False, True], ids=["plain", "skip"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["weight", "bias"])
@pytest.mark.parametrize(("rows", "has_input_bias"), [(1, False), (50, False), (50, True)])
def test_a_layer_norm_gives_codes_the_normed_and_the_sum(level, rows, has_skip, has_bias, has_input_bias):
    rng = np.random.default_rng(rows)
    one, two = (rng.standard_normal((1, rows, 48)).astype(np.float32) + 3 for _ in range(2))
    weight, (bias, input_bias) = rng.uniform(0.5, 2, 48).astype(np.float32), rng.standard_normal((2, 48), np.float32)
    inputs = [one, two if has_skip else None, weight, bias if has_bias else None]
    rest = [input_bias] if has_input_bias else []
    total = one.astype(np.float64) + (input_bias if has_input_bias else 0) + (two if has_skip else 0)
    apart = total - total.mean(axis=-1, keepdims=True)
    expected = apart / np.sqrt((apart**2).mean(axis=-1, keepdims=True) + 1e-5) * weight + (bias if has_bias else 0)
    codes, normed, sums = run_alone("LayerNormCodes", [*inputs, SCALE, *rest], 3, epsilon=1e-5)
    assert_codes(codes, expected, SCALE)
    np.testing.assert_allclose(normed, expected, atol=1e-5)
    np.testing.assert_allclose(sums, total, rtol=1e-6)
    inputs += [None, *rest]
    while inputs[-1] is None:
        inputs.pop()
    for found, wanted in zip(run_alone("LayerNorm", inputs, 2, epsilon=1e-5), (normed, sums), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_a_sum_over_tokens_is_the_same_bits_whatever_lies_beyond_a_text(level):
    rng = np.random.default_rng(0)
    values, lengths = rng.standard_normal((4, 70, 64)).astype(np.float32), np.array([1, 70, 33, 9])
    weights = (np.arange(70) < lengths[:, None])[..., None].astype(np.float32)
    (found,) = run_alone("SumTokens", [values, weights])
    np.testing.assert_allclose(found, (values.astype(np.float64) * weights).sum(axis=1), atol=1e-5)
    for row, length in enumerate(lengths):
        alone = [np.ascontiguousarray(array[row : row + 1, :length]) for array in (values, weights)]
        np.testing.assert_array_equal(run_alone("SumTokens", alone)[0][0], found[row])


def bfloat16(values):
    """Rounded to 8 bits of mantissa, halves to even, as float64."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)


def bfloat16_tiles(weight):
    """[in, out] as the kernel reads it: 16 outputs by 2 inputs of the upper halves of rounded floats."""
    depth, width = weight.shape
    bits = (bfloat16(weight).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    columns = [bits[:, column : column + 16].reshape(depth // 2, 2, 16) for column in range(0, width, 16)]
    return np.stack([tile.transpose(0, 2, 1).reshape(depth // 2, 32) for tile in columns])


@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("rows", "depth", "width"), [(1, 32, 16), (5, 64, 48), (13, 96, 80), (40, 384, 64)])
def test_a_product_of_bfloat16_is_that_of_the_rounded_numbers(every_level, rows, depth, width, has_bias):
    rng = np.random.default_rng(rows)
    values, weight = rng.standard_normal((1, rows, depth), np.float32), rng.standard_normal((depth, width), np.float32)
    bias = rng.standard_normal(width, np.float32)
    expected = bfloat16(values) @ bfloat16(weight) + (bias if has_bias else 0)
    inputs = [values, bfloat16_tiles(weight), *([bias] if has_bias else [])]
    (found,) = run_alone("Bfloat16Linear", inputs)
    np.testing.assert_allclose(found, expected, atol=3e-6 * np.abs(expected).max())
    for tanh in (False, True):
        (found,) = run_alone("GeluBfloat16Linear", inputs, tanh=int(tanh))
        np.testing.assert_allclose(found, gelu(expected, tanh=tanh), atol=5e-6 * np.abs(expected).max())


def test_a_row_gets_the_same_bits_of_bfloat16_among_any_others_and_on_any_threads(level):
    rng = np.random.default_rng(0)
    values, weight = rng.standard_normal((1, 40, 96), np.float32), rng.standard_normal((96, 48), np.float32)
    (whole,) = run_alone("Bfloat16Linear", [values, bfloat16_tiles(weight)])
    for begin, end in ((0, 1), (3, 5), (7, 20), (27, 40)):
        part = np.ascontiguousarray(values[:, begin:end])
        (found,) = run_alone("Bfloat16Linear", [part, bfloat16_tiles(weight)], threads=3)
        np.testing.assert_array_equal(found, whole[:, begin:end])


def test_what_is_not_finite_stays_so_in_bfloat16(level):
    values = np.zeros((1, 4, 32), np.float32)
    values[0, :, 5] = [np.nan, np.inf, -np.inf, 3.4e38]  # the last is infinite once it is rounded
    with np.errstate(over="ignore"):
        weight = np.ones((32, 16), np.float32)
    (found,) = run_alone("Bfloat16Linear", [values, bfloat16_tiles(weight)])
    np.testing.assert_array_equal(found[0, :, 0], [np.nan, np.inf, -np.inf, np.inf])
