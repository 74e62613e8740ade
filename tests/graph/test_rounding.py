import numpy as np
import pytest

from piston.core.errors import MisuseError
from piston.graph.rounding import Grid, largest_scale, round_to_nearest, searched_scale

GRIDS = [Grid(8), Grid(8, 32), Grid(4, 32), Grid(4, 128), Grid(4)]


def weights(inputs=100, outputs=24, seed=0):
    return np.random.default_rng(seed).standard_t(4, (inputs, outputs)).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_is_within_half_a_step_of_its_code(grid):
    weight = weights()
    quantized = round_to_nearest(weight, grid)
    step = np.repeat(quantized.scales, [part.stop - part.start for part in grid.block_slices(100)], axis=0)
    assert (np.abs(quantized.dequantized() - weight) <= step / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("grid", GRIDS)
def test_codes_stay_on_the_grid(grid):
    codes = round_to_nearest(weights(), grid, search=True).codes
    assert codes.min() >= grid.low
    assert codes.max() <= grid.high


@pytest.mark.parametrize("grid", GRIDS)
def test_a_searched_scale_is_never_worse_than_the_largest_weights(grid):
    weight = weights()
    plain, searched = (round_to_nearest(weight, grid, search=search).dequantized() for search in (False, True))
    errors = [np.square(weight - result).reshape(-1)[None].sum() for result in (searched, plain)]
    assert errors[0] <= errors[1]


def test_a_searched_four_bit_scale_is_the_best_of_a_fine_brute_force():
    weight, grid = weights(32, 8), Grid(4, 32)
    chosen = searched_scale(weight, grid)

    def error(scale):
        return np.square(weight - np.clip(np.rint(weight / scale), -8, 7) * scale).sum(axis=0)

    extreme = np.abs(weight).max(axis=0) / 8
    fine = [error(sign * extreme * share) for share in np.linspace(0.5, 1.3, 801) for sign in (1, -1)]
    assert (error(chosen) <= 1.08 * np.min(fine, axis=0)).all()


def test_a_short_last_block_has_its_own_scale():
    assert round_to_nearest(weights(100), Grid(4, 32)).scales.shape == (4, 24)


def test_zeros_stay_zeros():
    weight = np.zeros((32, 3), np.float32)
    assert not round_to_nearest(weight, Grid(4, 32), search=True).dequantized().any()


@pytest.mark.parametrize("search", [False, True])
def test_zeros_have_a_scale_that_float16_holds_and_that_makes_errors_of_a_code_vanish(search):
    scales = round_to_nearest(np.zeros((32, 3), np.float32), Grid(8, 32), search=search).scales
    assert (scales.astype(np.float16) > 0).all()
    assert (scales < 1e-4).all()


def test_the_largest_weight_gets_the_largest_code():
    weight = weights()
    assert np.allclose(largest_scale(weight, Grid(8)) * 127, np.abs(weight).max(axis=0))


@pytest.mark.parametrize(("bits", "block"), [(5, 32), (4, 33), (8, 512)])
def test_a_grid_that_no_backend_has_is_refused(bits, block):
    with pytest.raises(MisuseError):
        Grid(bits, block)
