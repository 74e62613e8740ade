import numpy as np
import pytest

from piston.calibration.gptq import gptq
from piston.calibration.rounding import Grid, encode, round_to_nearest, searched_scale


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
    assert output_error(x, weight, gptq(weight, gram, grid)) < 0.7 * output_error(x, weight, nearest)


def test_uncorrelated_inputs_leave_rounding_to_nearest():
    _, weight = problem()
    grid = Grid(4, 32)
    result = gptq(weight, np.eye(len(weight)), grid)
    assert np.array_equal(result.codes, round_to_nearest(weight, grid, search=True).codes)


def test_it_is_the_papers_algorithm_step_by_step():
    """The unblocked form: after each input, the optimal update of all that follow, from a freshly inverted matrix."""
    x, weight = problem(24, 6, 200)
    grid = Grid(8)
    gram = x.astype(np.float64).T @ x
    hessian = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(24)
    remaining, expected = weight.astype(np.float64).copy(), np.empty(weight.shape, np.int8)
    scale = searched_scale(weight, grid)
    for row in range(24):
        inverse = np.linalg.inv(hessian[row:, row:])
        expected[row] = encode(remaining[row].astype(np.float32), scale, grid)
        error = (remaining[row] - expected[row] * scale) / inverse[0, 0]
        remaining[row:] -= np.outer(inverse[:, 0], error)
    codes = gptq(weight, gram, grid).codes
    assert (codes != expected).mean() < 0.01  # float32 against float64 may turn a tie


def test_inputs_that_were_never_seen_are_rounded_to_nearest():
    x, weight = problem()
    x[:, 10:20] = 0
    result = gptq(weight, x.astype(np.float64).T @ x, Grid(8))
    step = result.scales[0]
    assert (np.abs(result.dequantized()[10:20] - weight[10:20]) <= step / 2 * (1 + 1e-4)).all()
