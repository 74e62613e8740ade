"""Each operator against its definition in numpy, on the vector unit and, where the processor has them, on tiles."""

import copy
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnxruntime
import pytest
from kernel_cases import SCALE, assert_codes, codes_of, gelu, linear, tiled
from own_kernels import need_kernels, run_alone


@pytest.mark.parametrize(
    ("rows", "depth", "width"), [(1, 64, 16), (2, 128, 48), (7, 64, 32), (9, 192, 80), (33, 64, 64)]
)
def test_a_linear_layer_is_the_integer_product(level, rows, depth, width):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, depth, width)
    bias = rng.standard_normal(width).astype(np.float32)
    (plain,) = run_alone("IntegerLinear", [codes, tiled(weight), offset, scale, None])
    (biased,) = run_alone("IntegerLinear", [codes, tiled(weight), offset, scale, bias])
    np.testing.assert_allclose(plain, exact, rtol=3e-7, atol=1e-6)
    np.testing.assert_allclose(biased, exact + bias, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(("rows", "width"), [(1, 16), (2, 48), (9, 80), (40, 64)])
def test_outliers_are_added_in_float(level, rows, width):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, 64, width)
    outliers = rng.standard_normal((1, rows, 5)).astype(np.float32) * 1000
    beside = rng.standard_normal((5, width)).astype(np.float32)
    expected = exact + outliers.astype(np.float64) @ beside
    (found,) = run_alone("IntegerLinear", [codes, tiled(weight), offset, scale, None, outliers, beside])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_outliers_that_do_not_fit_their_weights_are_refused():
    need_kernels()
    codes, weight, offset, scale, _ = linear(np.random.default_rng(0), 2, 64, 32)
    outliers = np.zeros((1, 2, 5), np.float32)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="outliers of a linear layer"):
        run_alone("IntegerLinear", [codes, tiled(weight), offset, scale, None, outliers, np.zeros((4, 32), np.float32)])


def sparse_codes(rng, rows, depth, share):
    codes = np.full((1, rows, depth), 128, np.uint8)
    chosen = rng.random(codes.shape) < share
    codes[chosen] = rng.integers(0, 256, int(chosen.sum()), np.uint8)
    return codes


@pytest.mark.parametrize("share", [0, 0.01, 1])
@pytest.mark.parametrize(("rows", "width"), [(1, 16), (2, 48), (9, 80), (40, 64)])
def test_a_remainder_is_added_by_its_ratio(level, rows, width, share):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, 128, width)
    rest = sparse_codes(rng, rows, 128, share)
    expected = exact + 15 * ((rest.astype(np.int64) - 128) @ weight.astype(np.int64)) * scale.astype(np.float64)
    bias = rng.standard_normal(width).astype(np.float32)
    inputs = [codes, tiled(weight), offset, scale, bias, None, None, rest, np.float32(15)]
    (found,) = run_alone("IntegerLinear", inputs)
    np.testing.assert_allclose(found, expected + bias, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("rows", "depth"), [(3, 64), (2, 128)])
def test_a_remainder_that_does_not_fit_the_codes_is_refused(rows, depth):
    need_kernels()
    rng = np.random.default_rng(0)
    codes, weight, offset, scale, _ = linear(rng, 2, 64, 32)
    inputs = [codes, tiled(weight), offset, scale, None, None, None, sparse_codes(rng, rows, depth, 1), np.float32(7)]
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="the remainder"):
        run_alone("IntegerLinear", inputs)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_gated_layer_gives_codes_of_what_its_codes_leave_over(level, rows):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, _ = linear(rng, rows, 64, 96)
    inputs, ratio = [codes, tiled(weight), offset, scale], np.float32(15)
    (values,) = run_alone("GatedLinear", inputs)
    fine = np.abs(values).max() / 127 / (1 + ratio)
    found, rest = run_alone("GatedLinearCodes", [*inputs, fine, None, fine * ratio], [True, False, True])
    assert_codes(found, values, fine)
    assert (rest != 128).any()
    left = values - (found.astype(np.float32) - 128) * fine
    assert_codes(rest, left, fine * ratio)
    both = (found.astype(np.float64) - 128) + ratio * (rest.astype(np.float64) - 128)
    assert np.abs(both * fine - values).max() <= fine * ratio * 0.51


@pytest.mark.parametrize("channels", [[0], [47], [3, 15, 16, 31], list(range(48))])
@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_gated_layer_gives_chosen_channels_in_float_too(level, rows, channels):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, _ = linear(rng, rows, 64, 96)
    inputs = [codes, tiled(weight), offset, scale]
    (values,) = run_alone("GatedLinear", inputs)
    (alone,) = run_alone("GatedLinearCodes", [*inputs, SCALE])
    found, picked = run_alone("GatedLinearCodes", [*inputs, SCALE, np.array(channels, np.int64)], 2)
    np.testing.assert_array_equal(found, alone)
    np.testing.assert_array_equal(picked, values[..., channels])


@pytest.mark.parametrize("channels", [[1, 0], [2, 2], [-1], [48]])
def test_channels_that_a_gated_layer_has_not_are_refused(channels):
    need_kernels()
    codes, weight, offset, scale, _ = linear(np.random.default_rng(0), 2, 64, 96)
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="not ascending"):
        run_alone("GatedLinearCodes", [codes, tiled(weight), offset, scale, SCALE, np.array(channels, np.int64)], 2)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_a_gated_layer_is_silu_of_the_gate_times_up(level, rows):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, exact = linear(rng, rows, 64, 96)
    gate, up = (exact.reshape(rows, 3, 2, 16)[:, :, part].reshape(1, rows, 48) for part in (0, 1))
    expected = gate / (1 + np.exp(-gate)) * up
    (values,) = run_alone("GatedLinear", [codes, tiled(weight), offset, scale])
    (found,) = run_alone("GatedLinearCodes", [codes, tiled(weight), offset, scale, SCALE])
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
    assert found.dtype == np.uint8
    assert_codes(found, expected, SCALE)


@pytest.mark.parametrize("rows", [1, 50])
def test_a_norm_gives_the_sum_and_its_codes_or_itself(level, rows):
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal((1, rows, 48)).astype(np.float32) for _ in range(2))
    weight = rng.uniform(0.5, 2, 48).astype(np.float32)
    codes, total = run_alone("NormCodes", [one, two, weight, SCALE], 2, epsilon=1e-5)
    expected = one.astype(np.float64) + two
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    normed = expected / np.sqrt((expected**2).mean(axis=-1, keepdims=True) + 1e-5) * weight
    assert_codes(codes, normed, SCALE)
    for found, wanted in zip(run_alone("Norm", [one, two, weight], 2, epsilon=1e-5), (normed, expected), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_codes_saturate(level):
    width = 32
    weight = np.full((64, width), 127, np.int8)
    codes = np.full((1, 3, 64), 255, np.uint8)
    offset, scale = 128 * weight.astype(np.int32).sum(axis=0), np.full(width, 1e6, np.float32)
    (found,) = run_alone("GatedLinearCodes", [codes, tiled(weight), offset.astype(np.int32), scale, SCALE])
    assert (found == 255).all()


class Heads:
    """Random inputs of an attention, and what it must give: a loop over tokens in float64."""

    def __init__(self, rows, seq, past, *, heads=6, kv_heads=2, dim=32, capacity=200, int8=False, seed=0):
        rng = np.random.default_rng(seed)
        self.heads, self.kv_heads, self.dim, self.seq, self.int8 = heads, kv_heads, dim, seq, int8
        self.packed = rng.standard_normal((rows, seq, (heads + 2 * kv_heads) * dim)).astype(np.float32)
        self.past = np.array(past)
        shape = (rows, kv_heads, capacity, dim)
        caches = [rng.standard_normal(shape).astype(np.float32) for _ in range(2)]
        self.scales = [rng.uniform(0.01, 0.03, (kv_heads, dim)).astype(np.float32) for _ in range(2)]
        self.caches = [self.rounded(*pair) for pair in zip(caches, self.scales, strict=True)] if int8 else caches
        angles = rng.uniform(0, 6, (capacity, dim // 2))
        self.cos, self.sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def rounded(self, values, scales):
        return np.clip(np.rint(values / scales[:, None]), -128, 127).astype(np.int8)

    def run(self, *, codes=False, apart=False, threads=2):
        name = f"Attention{'Int8' * self.int8}{'Codes' * codes}"
        scales = self.scales if self.int8 else [None, None]
        last = (self.past + self.seq - 1).astype(np.int32)
        heads = np.split(self.packed, np.cumsum([self.heads, self.kv_heads]) * self.dim, axis=-1)
        query, *rest = heads if apart else [self.packed]
        inputs = [query, *self.caches, last, self.cos, self.sin, *scales, SCALE if codes else None, *rest]
        while inputs[-1] is None:
            inputs.pop()
        return run_alone(name, inputs, 3, threads=threads, num_heads=self.heads, scale=0.2)

    def rotated(self, head, position):
        low, high = head[..., : self.dim // 2].astype(np.float64), head[..., self.dim // 2 :].astype(np.float64)
        cos, sin = self.cos[position], self.sin[position]
        return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)

    def expected(self):
        rows, group = len(self.past), self.heads // self.kv_heads
        split = self.packed.reshape(rows, self.seq, -1, self.dim)
        query, key, value = np.split(split, [self.heads, self.heads + self.kv_heads], axis=2)
        keys, values = (cache.astype(np.float64) for cache in self.caches)
        out = np.zeros((rows, self.seq, self.heads, self.dim))
        for row in range(rows):
            for token in range(self.seq):
                position = self.past[row] + token
                new = self.rotated(key[row, token], position), value[row, token].astype(np.float64)
                for cache, entry, scales in zip((keys, values), new, self.scales, strict=True):
                    cache[row, :, position] = np.clip(np.rint(entry / scales), -128, 127) if self.int8 else entry
            factors = self.scales if self.int8 else [np.ones((self.kv_heads, self.dim))] * 2
            for token in range(self.seq):
                end = self.past[row] + token + 1
                turned = self.rotated(query[row, token], end - 1)
                for head in range(self.heads):
                    kv = head // group
                    score = 0.2 * (keys[row, kv, :end] * factors[0][kv]) @ turned[head]
                    weight = np.exp(score - score.max())
                    out[row, token, head] = weight / weight.sum() @ (values[row, kv, :end] * factors[1][kv])
        return out.reshape(rows, self.seq, -1), keys, values


STEPS = [
    pytest.param(3, 1, [0, 70, 199], id="decode"),
    pytest.param(1, 3, [5], id="few"),
    pytest.param(1, 16, [0], id="block"),
    pytest.param(1, 70, [61], id="chunk"),
    pytest.param(2, 21, [100, 3], id="ragged"),
]


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize(("rows", "seq", "past"), STEPS)
def test_attention_is_causal_softmax_over_the_cache(level, rows, seq, past, int8):
    heads = Heads(rows, seq, past, int8=int8)
    out, keys, values = heads.run()
    expected, expected_keys, expected_values = heads.expected()
    np.testing.assert_allclose(out, expected, atol=3e-5 * np.abs(expected).max())
    for found, wanted in ((keys, expected_keys), (values, expected_values)):
        assert np.abs(found - wanted).max() <= (1 if int8 else 1e-5)
        assert (np.abs(found - wanted) > 1e-5).mean() < 1e-3


@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(2, 2, 64), (5, 1, 96), (8, 1, 128), (9, 3, 64)])
@pytest.mark.parametrize("seq", [1, 40])
def test_attention_takes_any_group_and_width(level, heads, kv_heads, dim, seq):
    attention = Heads(1, seq, [130], heads=heads, kv_heads=kv_heads, dim=dim)
    expected = attention.expected()[0]
    np.testing.assert_allclose(attention.run()[0], expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("seq", [1, 40])
def test_attention_gives_codes(level, seq):
    attention = Heads(1, seq, [90])
    assert_codes(attention.run(codes=True)[0], attention.expected()[0], SCALE)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("codes", [False, True], ids=["floats", "codes"])
@pytest.mark.parametrize("seq", [1, 40])
def test_attention_reads_heads_packed_or_apart(level, seq, codes, int8):
    attention = Heads(2, seq, [90, 7], int8=int8)
    for packed, apart in zip(attention.run(codes=codes), attention.run(codes=codes, apart=True), strict=True):
        np.testing.assert_array_equal(apart, packed)


def test_scores_of_any_size_stay_finite(level):
    attention = Heads(1, 40, [90])
    attention.packed *= 300
    out = attention.run()[0]
    expected = attention.expected()[0]
    np.testing.assert_allclose(out, expected, atol=2e-3 * np.abs(expected).max())  # scores of 1e5: float's last digits


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
@pytest.mark.parametrize("seq", [2, 7, 16])
def test_a_token_among_others_is_the_same_bits_as_alone(level, seq, int8):
    together, past = Heads(1, seq, [92], int8=int8), 92
    alone = copy.copy(together)
    alone.seq = 1
    for token, expected in enumerate(together.run()[0][0]):
        alone.packed, alone.past = together.packed[:, token : token + 1], np.array([past + token])
        found, *alone.caches = alone.run()
        np.testing.assert_array_equal(found[0, 0], expected)


# Groups of one head, of as many as are computed at once, and of more; heads of two vectors, and of more.
@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim"), [(2, 2, 64), (6, 2, 32), (7, 1, 96), (8, 1, 32), (11, 1, 64), (5, 1, 128)]
)
@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_prompt_gets_the_same_bits_however_it_is_cut(level, heads, kv_heads, dim, int8):
    rng = np.random.default_rng(heads)
    whole = Heads(1, 150, [21], heads=heads, kv_heads=kv_heads, dim=dim, int8=int8)
    expected = whole.run()
    shortest = 17 if level == "amx" else 1  # tile registers attend more than 16 tokens in other arithmetic
    for _ in range(3):
        part, done, found = copy.copy(whole), 0, []
        while done < whole.seq:
            left = whole.seq - done
            part.seq = int(rng.choice([1, 2, 15, 16, 17, 23, 40]).clip(shortest, left))
            if left - part.seq < shortest:
                part.seq = left
            part.packed, part.past = whole.packed[:, done : done + part.seq], np.array([21 + done])
            out, *part.caches = part.run()
            found.append(out)
            done += part.seq
        for one, other in zip([np.concatenate(found, axis=1), *part.caches], expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_a_row_of_a_product_is_the_same_bits_among_others_as_alone(level, rows):
    rng = np.random.default_rng(rows)
    codes, weight, offset, scale, _ = linear(rng, rows, 64, 96)
    operands = {"IntegerLinear": [tiled(weight), offset, scale, None], "GatedLinear": [tiled(weight), offset, scale]}
    values = rng.standard_normal((1, rows, 64)).astype(np.float32)
    blocks = [tiled(codes_of(weight, 1).astype(np.uint8)), rng.uniform(0.001, 0.01, (6, 2, 16)).astype(np.float32)]
    for name, given, rest in [
        *((name, codes, rest) for name, rest in operands.items()),
        ("BlockLinear", values, blocks),
    ]:
        size = {"block_size": 32} if name == "BlockLinear" else {}
        (together,) = run_alone(name, [given, *rest], **size)
        alone = [run_alone(name, [given[:, row : row + 1], *rest], **size)[0] for row in range(rows)]
        np.testing.assert_array_equal(np.concatenate(alone, axis=1), together)


def test_lengths_beyond_the_cache_are_refused(level):
    attention = Heads(1, 8, [195])
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="outside the cache"):
        attention.run()


def nibbles(codes):
    """Tiles of 4-bit codes: the first four inputs of eight in the low halves of bytes, the others in the high ones."""
    tiles = tiled(codes.astype(np.int16)).astype(np.uint8)
    return tiles[:, 0::2] | (tiles[:, 1::2] << 4)


def blocks_of(rng, depth, width, block, bits):
    """Codes [in, out] and scales [blocks, out], and both in tiles."""
    codes = rng.integers(0, 2**bits, (depth, width), np.uint8)
    scales = rng.uniform(0.001, 0.01, (-(-depth // block), width)).astype(np.float32)
    tiles = nibbles(codes) if bits == 4 else tiled(codes.astype(np.int16)).astype(np.uint8)
    return codes, scales, [tiles, scales.reshape(-1, width // 16, 16).transpose(1, 0, 2).copy()]


def product_of(values, codes, scales, block, bits):
    """Values [rows, in] rounded to INT8 block by block, times weights of that many bits."""
    expected = np.zeros((len(values), codes.shape[1]))
    for index, first in enumerate(range(0, len(codes), block)):
        part = values[:, first : first + block].astype(np.float64)
        step = np.abs(part).max(axis=-1, keepdims=True) / 127
        rounded = np.rint(np.divide(part, step, where=step > 0, out=np.zeros_like(part))) * step
        expected += rounded @ ((codes[first : first + block].astype(np.float64) - 2 ** (bits - 1)) * scales[index])
    return expected


def assert_near(found, expected):
    assert np.abs(found - expected).max() < 2e-2 * np.abs(expected).max()  # one code on an edge
    assert np.linalg.norm(found - expected) < 1e-3 * np.linalg.norm(expected)


BLOCKS = [(1, 96, 32, 32), (3, 64, 48, 16), (11, 128, 16, 64), (2, 96, 16, 64), (33, 192, 48, 128), (70, 64, 32, 64)]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("rows", "depth", "width", "block"), BLOCKS)
def test_a_product_by_blocks_rounds_its_input_block_by_block(level, rows, depth, width, block, bits):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, depth)).astype(np.float32)
    values[0, 0, :block] = 0  # a block without any activation
    codes, scales, stored = blocks_of(rng, depth, width, block, bits)
    (found,) = run_alone("BlockLinear", [values, *stored], block_size=block)
    assert_near(found[0], product_of(values[0], codes, scales, block, bits))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_one_scale_for_all_blocks_of_a_column_is_stored_once(level, rows, bits):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, 192)).astype(np.float32)
    tiles, scales = blocks_of(rng, 192, 80, 64, bits)[2]
    once = scales[:, :1]
    (expected,) = run_alone("BlockLinear", [values, tiles, np.repeat(once, 3, axis=1)], block_size=64)
    (found,) = run_alone("BlockLinear", [values, tiles, once], block_size=64)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 2, 9, 40])
def test_parts_of_several_widths_are_the_bits_of_each_alone(level, rows):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, 192)).astype(np.float32)
    parts = [blocks_of(rng, 192, width, 64, bits)[2] for width, bits in ((80, 4), (32, 8), (16, 8))]
    together = run_alone("BlockLinear", [values, *itertools.chain(*parts)], 3, block_size=64)
    for part, found in zip(parts, together, strict=True):
        np.testing.assert_array_equal(found, run_alone("BlockLinear", [values, *part], block_size=64)[0])


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bits", [(4, 4), (4, 8), (8, 8)])
def test_a_gated_product_by_blocks_is_silu_of_the_gate_times_up(level, rows, bits):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, 128)).astype(np.float32)
    gate, up = (blocks_of(rng, 128, 48, 64, each) for each in bits)
    (found,) = run_alone("GatedBlockLinear", [values, *gate[2], *up[2]], block_size=64)
    first, second = (product_of(values[0], *part[:2], 64, each) for part, each in zip((gate, up), bits, strict=True))
    assert_near(found[0], first / (1 + np.exp(-first)) * second)


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("width", [48, 80])
def test_a_product_by_blocks_adds_its_bias_and_bends_it(level, rows, width):
    rng = np.random.default_rng(rows)
    values, bias = rng.standard_normal((1, rows, 128)).astype(np.float32), rng.standard_normal(width).astype(np.float32)
    one, other = (blocks_of(rng, 128, width, 64, bits)[2] for bits in (4, 8))
    plain = run_alone("BlockLinear", [values, *one, *other], 2, block_size=64)
    both = run_alone("BiasBlockLinear", [values, *one, bias, *other, -bias], 2, block_size=64)
    np.testing.assert_array_equal(both[0], plain[0] + bias)
    np.testing.assert_array_equal(both[1], plain[1] - bias)
    for name, tanh in (("GeluBlockLinear", False), ("TanhGeluBlockLinear", True)):
        (bent,) = run_alone(name, [values, *one, bias], block_size=64)
        np.testing.assert_allclose(bent, gelu(both[0].astype(np.float64), tanh=tanh), atol=2e-6 * np.abs(both[0]).max())


def test_a_row_is_the_same_bits_on_tiles_as_alone(level):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((1, 45, 320)).astype(np.float32)
    gate, up = (blocks_of(rng, 320, 48, 128, bits)[2] for bits in (4, 8))
    for name, rest in (("BlockLinear", up), ("GatedBlockLinear", gate + up)):
        (together,) = run_alone(name, [values, *rest], block_size=128)
        for row in (0, 17, 31, 32, 44):
            (alone,) = run_alone(name, [values[:, row : row + 1], *rest], block_size=128)
            np.testing.assert_array_equal(together[:, row : row + 1], alone)


# Copies fill a block up, begin in one and go on in the next, or are a block of their own.
@pytest.mark.parametrize(("depth", "copies", "block"), [(112, 16, 64), (96, 96, 64), (64, 64, 64), (320, 64, 256)])
@pytest.mark.parametrize("rows", [1, 3, 40])
def test_copies_of_inputs_count_like_inputs_of_their_own(level, rows, depth, copies, block):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, depth)).astype(np.float32)
    source = rng.integers(0, depth, copies)
    whole = np.concatenate([values, values[..., source]], axis=-1)
    q, k, v = (blocks_of(rng, depth + copies, width, block, bits)[2] for width, bits in ((48, 4), (16, 8), (16, 8)))
    size = {"block_size": block}
    for name, count, rest in (("BlockLinear", 1, q), ("BlockLinear", 3, q + k + v), ("GatedBlockLinear", 1, k + v)):
        expected = run_alone(name, [whole, *rest], count, **size)
        found = run_alone(f"Split{name}", [values, source, *rest], count, **size)
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("wrong", [-1, 64, 2**40])
def test_a_copy_of_no_input_is_refused(level, wrong):
    rng = np.random.default_rng(0)
    stored = blocks_of(rng, 80, 16, 16, 4)[2]
    source = np.array([0] * 15 + [wrong])
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="not in the input"):
        run_alone("SplitBlockLinear", [np.ones((1, 2, 64), np.float32), source, *stored], block_size=16)


@pytest.mark.parametrize("count", [1, 300])
def test_rows_of_a_table_are_their_codes_by_their_scales(level, count):
    rng = np.random.default_rng(count)
    codes, scales, stored = blocks_of(rng, 96, 48, 32, 8)
    ids = rng.integers(0, 48, (1, count))
    (found,) = run_alone("BlockRows", [ids, *stored], block_size=32)
    table = ((codes.astype(np.float32) - 128) * np.repeat(scales, 32, axis=0)).T
    np.testing.assert_array_equal(found, table[ids])
    with pytest.raises(onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument, match="outside the table"):
        run_alone("BlockRows", [np.array([[0, 48]]), *stored], block_size=32)


@pytest.mark.parametrize("int8", [False, True], ids=["float", "int8"])
def test_a_long_past_is_put_together_from_its_parts(level, int8):
    heads = Heads(3, 1, [2050, 129, 60], capacity=2100, int8=int8)
    expected = heads.expected()[0]
    np.testing.assert_allclose(heads.run()[0], expected, atol=3e-5 * np.abs(expected).max())


@pytest.mark.parametrize("threads", [1, 3, 9, 100_000])
def test_any_number_of_threads_gives_the_same_bits(level, threads):
    rng = np.random.default_rng(0)
    attention, chunk = Heads(3, 1, [2050, 129, 60], capacity=2100), Heads(1, 70, [61])
    codes, weight, offset, scale, _ = linear(rng, 5, 512, 1536)
    values = rng.standard_normal((1, 5, 512)).astype(np.float32)
    parts = [blocks_of(rng, 512, width, 32, bits)[2] for width, bits in ((1520, 8), (16, 4), (528, 8))]
    runs = [
        lambda count: attention.run(threads=count),
        lambda count: chunk.run(threads=count),
        lambda count: run_alone("IntegerLinear", [codes, tiled(weight), offset, scale], threads=count),
        lambda count: run_alone("BlockLinear", [values, *itertools.chain(*parts)], 3, threads=count, block_size=32),
    ]
    for run in runs:
        for found, expected in zip(run(threads), run(2), strict=True):
            np.testing.assert_array_equal(found, expected)


def test_operators_of_several_sessions_run_at_once(level):
    attentions = [Heads(2, 1, [1500, 90], capacity=1600, seed=seed) for seed in range(4)]
    alone = [attention.run()[0] for attention in attentions]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda attention: attention.run()[0], attentions * 8))
    for found, expected in zip(together, alone * 8, strict=True):
        np.testing.assert_array_equal(found, expected)
