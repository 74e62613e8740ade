"""A channel that is divided and read as often as that gives the same sums, and finer ones once they are rounded."""

import numpy as np
import pytest

from piston.calibration.schemes.channel_splitting import num_copies, shared_out, split_largest
from piston.calibration.schemes.gptq import Hessian, gptq
from piston.graph.rounding import Grid


def added_up(weight, source):
    """Weights of copies, for their channels."""
    return np.stack([weight[source == channel].sum(axis=0) for channel in range(source.max() + 1)])


def test_the_channel_with_the_largest_copies_gets_the_next():
    source = split_largest(np.array([1.0, 9.0, 2.0, 4.0]), 5)
    # 9 | 4, of two copies 4.5, of three 3; then 3, and so on: five of the one and two of the other
    assert source.tolist() == [0, 1, 2, 3, 1, 1, 1, 1, 3]
    assert num_copies(source).tolist() == [1, 5, 1, 2]


@pytest.mark.parametrize("extra", [0, 1, 7, 64])
def test_no_channel_is_left_larger_than_another_assignment_would_leave_it(extra):
    """Against every possible bound: the least that this many copies can reach, by bisection over channels' needs."""
    sizes = np.random.default_rng(extra).lognormal(sigma=1.5, size=30)
    source = split_largest(sizes, extra)
    assert len(source) == 30 + extra
    assert source[:30].tolist() == list(range(30))
    reached = (sizes / num_copies(source)).max()
    bounds = np.unique([size / count for size in sizes for count in range(1, extra + 2)])
    affordable = [bound for bound in bounds if np.ceil(sizes / bound - 1e-9).sum() <= 30 + extra]
    assert np.isclose(reached, min(affordable))


def test_a_dead_input_gets_no_copies_and_all_dead_get_some():
    assert num_copies(split_largest(np.array([0.0, 3.0]), 4)).tolist() == [1, 5]
    assert num_copies(split_largest(np.zeros(2), 4)).sum() == 6


def test_shared_out_weights_of_copies_give_the_same_sums():
    rng = np.random.default_rng(0)
    tokens, weight = rng.normal(size=(20, 6)), rng.normal(size=(6, 4)).astype(np.float32)
    source = split_largest(np.array([1, 8, 1, 3, 1, 1.0]), 7)
    wide = shared_out(weight, source)
    assert np.allclose(tokens[:, source] @ wide, tokens @ weight)
    assert np.allclose(added_up(wide, source), weight)


def test_rounded_copies_of_large_inputs_lose_less_than_the_inputs_themselves():
    """In four bits by GPTQ, with exact activations: what one copy's code gets wrong, another's makes up for."""
    rng = np.random.default_rng(0)
    tokens, weight = rng.normal(size=(400, 32)), rng.normal(size=(32, 24)).astype(np.float32)
    tokens[:, :2] *= 20
    grid, gram = Grid(4, 64), tokens.T @ tokens
    source = split_largest(np.sqrt(np.diagonal(gram)), 16)
    factors = num_copies(source)
    split_gram = (gram / np.outer(factors, factors))[np.ix_(source, source)]
    plain = gptq(weight, Hessian(gram), grid).dequantized()
    split = gptq(shared_out(weight * factors[:, None], source), Hessian(split_gram), grid).dequantized()
    effective = added_up(split, source) / factors[:, None]
    lost = [np.linalg.norm(tokens @ (found - weight)) for found in (plain, effective)]
    assert lost[1] < 0.7 * lost[0]
