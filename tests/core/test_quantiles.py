import numpy as np
import pytest

from piston.core.quantiles import estimates, median_estimate


def test_quantiles_are_of_all_values_of_all_runs():
    runs = list(np.random.default_rng(0).random((7, 30)))
    found = estimates(runs, np.random.default_rng(1))
    for percent in (50, 90, 95, 99):
        assert found[f"p{percent}"].value == pytest.approx(np.percentile(np.concatenate(runs), percent))


def test_one_run_has_no_interval():
    found = estimates([np.arange(5.0)], np.random.default_rng(0))
    assert found["p50"].value == 2
    assert (found["p50"].low, found["p50"].high) == (None, None)


def test_intervals_hold_the_true_median_about_as_often_as_they_say():
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(200):
        runs = [np.array([value]) for value in rng.normal(10, 1, 25)]
        found = estimates(runs, rng, resamples=300)["p50"]
        hits += found.low <= 10 <= found.high
    assert hits >= 180  # of 190 to expect; fewer than 180 in one of 2,000 such tests


def test_values_that_share_a_run_do_not_make_the_interval_narrower():
    """A hundred equal values of one run tell no more than one."""
    rng = np.random.default_rng(2)
    values = rng.normal(10, 1, 12)
    single = estimates([np.array([value]) for value in values], np.random.default_rng(3))["p50"]
    many = estimates([np.full(100, value) for value in values], np.random.default_rng(3))["p50"]
    assert many.high - many.low == pytest.approx(single.high - single.low, rel=0.35)


def test_an_estimate_is_reproducible_for_a_seed():
    values = [1.0, 2.0, 4.0, 8.0]
    first, second = (median_estimate(values, np.random.default_rng(9)) for _ in range(2))
    assert first == second
    assert (first.value, first.low, first.high) == (3, pytest.approx(1, abs=1), pytest.approx(8, abs=1))
