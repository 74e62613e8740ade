import numpy as np
import pytest

from piston.core.interval import bootstrap_mean, wilson


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
    monkeypatch.setattr("piston.core.interval._BLOCK", 500)
    assert bootstrap_mean(sums, counts, np.random.default_rng(0)) == whole


def test_equal_windows_leave_no_doubt():
    assert bootstrap_mean(np.full(9, 6.0), np.full(9, 3.0), np.random.default_rng(0)) == (2.0, 2.0)


def test_one_window_has_no_interval():
    assert bootstrap_mean(np.ones(1), np.ones(1), np.random.default_rng(0)) is None
