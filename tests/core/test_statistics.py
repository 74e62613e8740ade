import numpy as np
import pytest

from piston.core.statistics import bootstrap_mean, estimates, median_estimate, wilson


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Newcombe (1998), table I, method 3, to four digits
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_gives_the_published_intervals(hits, total, low, high):
    assert wilson(hits, total) == pytest.approx((low, high), abs=5e-5)


def test_wilson_of_all_hits_ends_at_one_exactly():
    assert wilson(9, 9).high == 1.0
    assert wilson(0, 9).low == 0.0


def test_the_bootstrap_covers_the_true_mean_as_often_as_it_says():
    rng, trials, covered = np.random.default_rng(1), 300, 0
    for _ in range(trials):
        counts = rng.integers(50, 200, 40).astype(float)
        sums = counts * (3.0 + rng.normal(0, 0.4, 40))
        low, high = bootstrap_mean(sums, counts, rng, resamples=400)
        covered += low <= 3.0 <= high
    assert 0.90 <= covered / trials <= 0.985


def test_the_bootstrap_is_reproducible_from_its_seed():
    sums, counts = np.arange(30.0), np.full(30, 5.0)
    found = [bootstrap_mean(sums, counts, np.random.default_rng(7)) for _ in range(2)]
    assert found[0] == found[1]


def test_the_bootstrap_in_blocks_draws_as_many_resamples(monkeypatch):
    sums, counts = np.random.default_rng(2).normal(3, 1, 50), np.ones(50)
    whole = bootstrap_mean(sums, counts, np.random.default_rng(0))
    monkeypatch.setattr("piston.core.statistics._BLOCK", 500)
    assert bootstrap_mean(sums, counts, np.random.default_rng(0)) == whole


def test_equal_windows_leave_no_doubt():
    assert bootstrap_mean(np.full(9, 6.0), np.full(9, 3.0), np.random.default_rng(0)) == (2.0, 2.0)


def test_one_window_has_no_interval():
    assert bootstrap_mean(np.ones(1), np.ones(1), np.random.default_rng(0)) is None


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
