"""Products by 2:4 sparse weights that are stored without their zeros give the same bits as with them."""

import ctypes
import itertools

import numpy as np
import pytest
from kernel_cases import linear, tiled
from own_kernels import need_kernels, run_alone

from piston.engines.lowering.kernels.sparse import packed_rows
from piston.runtime import kernels

ROWS = [1, 2, 3, 8, 9, 33, 70]


def sparse_mask(rng, depth, width):
    """Of every four inputs at most two are true; a tenth of the fours have none, a fifth one."""
    order = rng.permuted(np.tile(np.arange(4)[:, None], (depth // 4, 1, width)), axis=1)
    mask = order < rng.choice([0, 1, 2], (depth // 4, 1, width), p=[0.1, 0.2, 0.7])
    return mask.reshape(depth, width)


def packed(weights, bits):
    """The definition, of a weight [in, out] about zero, one after the other."""
    depth, width = weights.shape
    tiles = np.zeros((width // 16, depth // 8, 80 if bits == 8 else 48), np.uint8)
    for (tile, row), column in itertools.product(np.ndindex(tiles.shape[:2]), range(16)):
        eight = weights[8 * row : 8 * row + 8, 16 * tile + column]
        for half in range(2):
            four = eight[4 * half : 4 * half + 4]
            used = [at for at in range(4) if four[at]]
            unused = [at for at in range(4) if not four[at]]
            for place, at in enumerate(sorted([*used, *unused[: 2 - len(used)]]), 4 * column + 2 * half):
                if bits == 8:
                    tiles[tile, row, place] = four[at].view(np.uint8)
                else:
                    tiles[tile, row, place % 32] |= (four[at] + 8) << place // 32 * 4
                tiles[tile, row, place % 16 + (64 if bits == 8 else 32)] |= at << place // 16 * 2
    return tiles


def sparse_linear(rng, rows, depth, width):
    """Codes, the weight in tiles whole and packed, and what else an integer product reads."""
    codes, weight, _, scale, _ = linear(rng, rows, depth, width)
    weight *= sparse_mask(rng, depth, width)
    offset = (128 * weight.astype(np.int32).sum(axis=0)).astype(np.int32)
    return codes, tiled(weight), packed(weight, 8).view(np.int8), [offset, scale]


def sparse_blocks(rng, depth, width, block, bits):
    """Codes in tiles and scales: whole, and packed."""
    zero = 1 << (bits - 1)
    weights = (rng.integers(-zero, zero, (depth, width)) * sparse_mask(rng, depth, width)).astype(np.int8)
    tiles = tiled(weights.astype(np.int16) + zero).astype(np.uint8)
    if bits == 4:
        tiles = tiles[:, 0::2] | tiles[:, 1::2] << 4
    scales = rng.uniform(0.001, 0.01, (width // 16, -(-depth // block), 16)).astype(np.float32)
    return [tiles, scales], [packed(weights, bits), scales]


def test_packing_is_that_of_the_definition():
    rng = np.random.default_rng(0)
    _, whole, sparse, _ = sparse_linear(rng, 1, 64, 48)
    np.testing.assert_array_equal(packed_rows(whole, 8), sparse)
    for bits in (8, 4):
        (whole, _), (sparse, _) = sparse_blocks(rng, 64, 48, 32, bits)
        np.testing.assert_array_equal(packed_rows(whole, bits), sparse)


def expanded(sparse, bits, zero):
    need_kernels()
    out = np.zeros((len(sparse), 2 * sparse.shape[1], 64), np.uint8)
    given, made = (array.ctypes.data_as(ctypes.c_void_p) for array in (sparse, out))
    rows = ctypes.c_int64(sparse.shape[0] * sparse.shape[1])
    kernels.open_library().piston_kernels_expand(given, rows, bits, zero, made)
    return out


def test_tile_registers_read_the_weights_with_their_zeros():
    rng = np.random.default_rng(0)
    _, whole, sparse, _ = sparse_linear(rng, 1, 128, 48)
    np.testing.assert_array_equal(expanded(sparse, 8, 0).view(np.int8), whole)
    (whole, _), (sparse, _) = sparse_blocks(rng, 80, 48, 32, 8)
    np.testing.assert_array_equal(expanded(sparse, 8, 128), whole)
    (whole, _), (sparse, _) = sparse_blocks(rng, 80, 48, 32, 4)
    as_bytes = np.stack([whole & 0xF, whole >> 4], axis=2).reshape(3, -1, 64)
    np.testing.assert_array_equal(expanded(sparse, 4, 8), as_bytes)


@pytest.mark.parametrize(("depth", "width"), [(64, 16), (128, 48), (192, 80), (896, 32)])
@pytest.mark.parametrize("rows", ROWS)
def test_integer_products_are_the_same_bits(level, rows, depth, width):
    rng = np.random.default_rng(rows * depth)
    codes, whole, sparse, rest = sparse_linear(rng, rows, depth, width)
    (expected,) = run_alone("IntegerLinear", [codes, whole, *rest])
    (found,) = run_alone("IntegerLinear", [codes, sparse, *rest])
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 5, 9, 40])
def test_what_goes_with_integer_products_is_the_same_bits(level, rows):
    rng = np.random.default_rng(rows)
    codes, whole, sparse, rest = sparse_linear(rng, rows, 128, 96)
    bias, ratio, scale = rng.standard_normal(96).astype(np.float32), np.float32(7), np.float32(0.01)
    outliers = [rng.standard_normal((1, rows, 3)).astype(np.float32), rng.standard_normal((3, 96)).astype(np.float32)]
    coarse = np.where(rng.random(codes.shape) < 0.2, codes[..., ::-1], 128).astype(np.uint8)
    channels = np.array([1, 17, 40], np.int64)
    for name, inputs, num_outputs, attributes in (
        ("IntegerLinear", [bias, *outliers, coarse, ratio], 1, {}),
        ("GatedLinear", [], 1, {}),
        ("GatedLinearCodes", [scale, channels, scale * 15], 3, {}),
        ("GeluLinear", [bias], 1, {"tanh": 0}),
        ("GeluLinearCodes", [bias, scale, channels, scale * 15], 3, {"tanh": 1}),
    ):
        expected = run_alone(name, [codes, whole, *rest, *inputs], num_outputs, **attributes)
        for one, other in zip(
            run_alone(name, [codes, sparse, *rest, *inputs], num_outputs, **attributes), expected, strict=True
        ):
            np.testing.assert_array_equal(one, other)


# Blocks that end with a shorter one, of several widths; an odd number of tiles; sizes that no tile register takes.
@pytest.mark.parametrize(
    ("depth", "width", "block"),
    [(96, 32, 32), (64, 48, 16), (128, 16, 64), (80, 16, 32), (192, 80, 128), (896, 32, 64)],
)
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", ROWS)
def test_products_by_blocks_are_the_same_bits(level, rows, bits, depth, width, block):
    rng = np.random.default_rng(rows * depth)
    values = rng.standard_normal((1, rows, depth)).astype(np.float32)
    whole, sparse = sparse_blocks(rng, depth, width, block, bits)
    (expected,) = run_alone("BlockLinear", [values, *whole], block_size=block)
    (found,) = run_alone("BlockLinear", [values, *sparse], block_size=block)
    assert expected.any()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 5, 9, 40])
def test_parts_some_of_which_are_sparse_are_the_same_bits(level, rows):
    rng = np.random.default_rng(rows)
    values = rng.standard_normal((1, rows, 128)).astype(np.float32)
    copied = [values[..., :96], np.arange(32)]
    parts = [sparse_blocks(rng, 128, width, 64, bits) for width, bits in ((48, 4), (48, 8), (16, 8))]
    bias = [rng.standard_normal(width).astype(np.float32) for width in (48, 48, 16)]
    for chosen in itertools.product((0, 1), repeat=3):
        for name, given, num_parts, num_outputs, with_bias in (
            ("BlockLinear", [values], 3, 3, False),
            ("BiasBlockLinear", [values], 3, 3, True),
            ("GatedBlockLinear", [values], 2, 1, False),
            ("SplitBlockLinear", copied, 3, 3, False),
            ("SplitGatedBlockLinear", copied, 2, 1, False),
            ("GeluBlockLinear", [values], 1, 1, True),
            ("TanhGeluBlockLinear", [values], 1, 1, True),
        ):
            if any(chosen[num_parts:]):
                continue

            def operands(which, num_parts=num_parts, with_bias=with_bias):
                return itertools.chain.from_iterable(
                    [*parts[index][which[index]], *([bias[index]] if with_bias else [])] for index in range(num_parts)
                )

            expected = run_alone(name, [*given, *operands((0, 0, 0))], num_outputs, block_size=64)
            found = run_alone(name, [*given, *operands(chosen)], num_outputs, block_size=64)
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("threads", [1, 3, 9])
def test_any_number_of_threads_gives_the_same_bits(level, threads):
    rng = np.random.default_rng(0)
    codes, whole, sparse, rest = sparse_linear(rng, 5, 512, 1536)
    (expected,) = run_alone("IntegerLinear", [codes, whole, *rest])
    (found,) = run_alone("IntegerLinear", [codes, sparse, *rest], threads=threads)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("rows", [1, 9, 40])
def test_any_bytes_are_read_inside_their_bounds(level, rows):
    """Results are wrong then, and finite; `make sanitize` sees reads out of bounds."""
    rng = np.random.default_rng(rows)
    codes, _, sparse, rest = sparse_linear(rng, rows, 64, 48)
    values = rng.standard_normal((1, rows, 64)).astype(np.float32)
    noise = rng.integers(-128, 128, sparse.shape, np.int8)
    assert np.isfinite(run_alone("IntegerLinear", [codes, noise, *rest])[0]).all()
    for bits in (8, 4):
        tiles, scales = sparse_blocks(rng, 64, 48, 32, bits)[1]
        noise = rng.integers(0, 256, tiles.shape, np.uint8)
        assert np.isfinite(run_alone("BlockLinear", [values, noise, scales], block_size=32)[0]).all()
