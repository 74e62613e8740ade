"""The search for what to keep in float, on sets and numbers: every subset's cost is known here."""

import itertools

import numpy as np
import pytest

from piston.calibration.search.subset_search import Group, OutOfTimeError, search


def problem(seed, num_groups=12, num_costly=3):
    """Groups of one to three linears; harms add up, and a few groups have most of it."""
    rng = np.random.default_rng(seed)
    groups = []
    for number in range(num_groups):
        names = [f"{number}.{part}" for part in range(int(rng.integers(1, 4)))]
        cost = float(rng.uniform(1, 2) if number < num_costly else rng.uniform(0.001, 0.01))
        groups.append(Group({name: int(rng.integers(1, 10)) for name in names}, cost))
    rng.shuffle(groups)
    return groups


def cost_of(groups, kept):
    parts = [(group.cost / len(group.linears), name) for group in groups for name in group.linears]
    return sum(cost for cost, name in parts if name not in kept)


def searched(groups, bound):
    measured = []

    def is_met(kept):
        measured.append(kept)
        return cost_of(groups, kept) <= bound

    return search(groups, is_met), measured


@pytest.mark.parametrize("seed", range(8))
def test_the_harmful_linears_are_kept_and_no_others(seed):
    groups = problem(seed)
    found, measured = searched(groups, 0.2)
    costly = {name for group in groups if group.cost >= 1 for name in group.linears}
    assert found.kept == costly
    assert found.is_complete
    assert len(set(measured)) <= 8 + len(costly)


@pytest.mark.parametrize("seed", range(8))
def test_nothing_that_is_kept_could_be_quantized_by_itself(seed):
    groups = problem(seed, num_costly=6)
    bound = cost_of(groups, frozenset()) / 2
    found, _ = searched(groups, bound)
    assert cost_of(groups, found.kept) <= bound
    assert all(cost_of(groups, found.kept - {name}) > bound for name in found.kept)


def test_nothing_is_kept_where_nothing_must_be():
    found, measured = searched(problem(0), 100)
    assert (found.kept, measured) == (frozenset(), [frozenset()])


def test_a_bound_that_only_a_float_model_meets_is_not_met():
    found, measured = searched(problem(0), 0)
    assert (found.kept, found.is_complete) == (None, True)
    everything = {name for group in problem(0) for name in group.linears}
    assert all(kept < everything for kept in measured)


@pytest.mark.parametrize("limit", range(12))
def test_when_time_runs_out_the_best_so_far_is_the_answer(limit):
    groups, passed = problem(1, num_costly=5), []
    clock = itertools.count()

    def is_met(kept):
        if next(clock) == limit:
            raise OutOfTimeError
        met = cost_of(groups, kept) <= 0.2
        passed.extend([kept] if met else [])
        return met

    found = search(groups, is_met)
    assert found.kept == (min(passed, key=len) if passed else None)
    assert not found.is_complete
