import itertools

import numpy as np
import pytest

from piston.calibration.schemes.gptq import (
    LAZY,
    Hessian,
    damped,
    gptq,
    move_codes,
    output_loss,
    solve_scales,
    spread_scales,
)
from piston.graph.rounding import Grid, encode, round_to_nearest, searched_scale


def problem(inputs=96, outputs=40, samples=600, seed=0):
    """Correlated inputs, as activations are, and weights."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(inputs, inputs)) * np.exp(-np.arange(inputs) / 20)
    x = (rng.normal(size=(samples, inputs)) @ mixing).astype(np.float32)
    return x, rng.normal(size=(inputs, outputs)).astype(np.float32)


def output_error(x, weight, quantized):
    return float(np.square(x @ (weight - quantized.dequantized())).sum())


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4), Grid(8)])
def test_the_layers_output_is_nearer_than_by_rounding_to_nearest(grid):
    x, weight = problem()
    gram = x.astype(np.float64).T @ x
    nearest = round_to_nearest(weight, grid, search=True)
    assert output_error(x, weight, gptq(weight, Hessian(gram), grid)) < 0.6 * output_error(x, weight, nearest)


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    _, weight = problem()
    grid = Grid(4, 32)
    result = gptq(weight, Hessian(np.eye(len(weight))), grid, turns=0)
    assert np.array_equal(result.codes, round_to_nearest(weight, grid, search=True).codes)


@pytest.mark.parametrize("inputs", [24, 2 * LAZY + 9])
def test_it_is_the_papers_algorithm_step_by_step(inputs):
    """The unblocked form: after each input, the optimal update of all that follow, from a freshly inverted matrix."""
    x, weight = problem(inputs, 6)
    grid = Grid(8)
    gram = x.astype(np.float64).T @ x
    hessian = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(inputs)
    scale = searched_scale(weight, grid, np.diag(hessian).astype(np.float32))
    remaining, expected = weight.astype(np.float64).copy(), np.empty(weight.shape, np.int8)
    left = sorted(range(inputs), key=lambda k: -hessian[k, k])  # those that matter most first
    while left:
        row = left[0]
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        expected[row] = encode(remaining[row].astype(np.float32), scale, grid)
        error = (remaining[row] - expected[row] * scale) / inverse[0, 0]
        remaining[left] -= np.outer(inverse[:, 0], error)
        left = left[1:]
    codes = gptq(weight, Hessian(gram), grid, turns=0).codes
    assert (codes != expected).mean() < 0.01  # float32 against float64 may turn a tie


def test_inputs_that_were_never_seen_are_rounded_to_nearest():
    x, weight = problem()
    x[:, 10:20] = 0
    result = gptq(weight, Hessian(x.astype(np.float64).T @ x), Grid(8), turns=0)
    assert np.array_equal(result.codes[10:20], encode(weight[10:20], result.scales[0], Grid(8)))


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(8)])
def test_neither_solving_for_scales_nor_moving_codes_does_harm(grid):
    x, weight = problem(80, 12)
    whole = Hessian(x.astype(np.float64).T @ x)
    hessian, quantized = whole.matrix, gptq(weight, whole, grid, turns=0)
    losses = [output_loss(weight, hessian, quantized)]
    for step in (solve_scales, move_codes, solve_scales, move_codes):
        quantized = step(weight, hessian, quantized)
        losses.append(output_loss(weight, hessian, quantized))
    assert all(after <= before * (1 + 1e-5) for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0]


def test_scales_are_those_of_least_squares():
    x, weight = problem(64, 5)
    quantized = solve_scales(weight, Hessian(x.T @ x).matrix, round_to_nearest(weight, Grid(4, 32)))
    gram = damped(x.T @ x)
    root = np.linalg.cholesky(gram).T  # |root v|^2 = v^T gram v
    for column in range(5):
        parts = np.zeros((64, 2))
        parts[:32, 0], parts[32:, 1] = quantized.codes[:32, column], quantized.codes[32:, column]
        expected = np.linalg.lstsq(root @ parts, root @ weight[:, column], rcond=None)[0]
        assert np.allclose(quantized.scales[:, column], expected, rtol=1e-3)


def test_moved_codes_come_near_the_best_of_all():
    """All 16^4 codes of four inputs are tried: moving nearly finds the best, and rounding to nearest does not."""
    every = np.array(list(itertools.product(range(-8, 8), repeat=4)), np.float32)
    moved, nearest = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(50, 1)) + 0.3 * rng.normal(size=(50, 4))  # one cause behind all four
        weight, hessian = rng.normal(size=(4, 1)).astype(np.float32), damped(x.T @ x)
        quantized = round_to_nearest(weight, Grid(4, 16))
        changes = weight[:, 0] - every * quantized.scales[0, 0]
        best = np.einsum("ck,kl,cl->c", changes, hessian, changes).min()
        nearest.append(output_loss(weight, hessian, quantized) / best)
        for _ in range(4):
            quantized = move_codes(weight, hessian, quantized)
        moved.append(output_loss(weight, hessian, quantized) / best)
    assert min(moved) > 1 - 1e-4
    assert np.mean(moved) < 1.3
    assert np.mean(nearest) > 2


def test_an_output_is_rounded_alike_whichever_stand_beside_it():
    """So linears that read the same may be rounded as one."""
    x, weight = problem(2 * LAZY + 9)
    hessian = Hessian(x.astype(np.float64).T @ x)
    whole, part = (gptq(columns, hessian, Grid(4, 32)) for columns in (weight, weight[:, 10:25]))
    assert (whole.codes[:, 10:25] != part.codes).mean() < 0.01
    assert np.isclose(whole.scales[:, 10:25], part.scales, rtol=1e-3).mean() > 0.99


def test_codes_are_moved_for_all_moves_before_them():
    """One input after the other, in float64."""
    x, weight = problem(2 * LAZY + 9, 6)
    hessian, quantized = damped(x.astype(np.float64).T @ x), round_to_nearest(weight, Grid(8))
    codes, scale = quantized.codes.astype(np.float64), quantized.scales[0].astype(np.float64)
    for k in range(len(weight)):
        pull = hessian[k] @ (weight - codes * scale)
        codes[k] = np.clip(np.rint(codes[k] + pull / (hessian[k, k] * scale)), -127, 127)
    assert (codes != quantized.codes).mean() > 0.2
    assert (codes != move_codes(weight, hessian, quantized).codes).mean() < 0.01


def test_scales_are_spread_over_their_blocks_the_last_of_which_may_be_short():
    spread = spread_scales(np.array([[1, 2], [3, 4]], np.float32), Grid(4, 32), 40)
    assert np.array_equal(spread[:, 0], [1] * 32 + [3] * 8)
