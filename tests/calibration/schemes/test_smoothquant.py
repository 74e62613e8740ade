"""Factors are chosen by what they leave wrong where the output goes."""

import numpy as np
import pytest

from piston.calibration.schemes.smoothquant import output_error, relative_error, search, smoothing_factors

RNG = np.random.default_rng(0)


def outlying(tokens=60, inputs=48, outputs=20):
    """Activations of which two channels are a hundred times the others."""
    sample = RNG.normal(size=(tokens, inputs)).astype(np.float32)
    sample[:, [3, 17]] *= 100
    return sample, RNG.normal(size=(inputs, outputs)).astype(np.float32)


def test_the_choice_is_never_worse_than_no_factors():
    for _ in range(5):
        sample, weight = outlying()
        found = search(sample, np.abs(sample).max(axis=0), [weight])
        assert found.error_after <= found.error_before
        ones = np.ones(len(weight), np.float32)
        assert found.error_before == output_error(sample, np.abs(sample).max(axis=0), weight, ones)


def test_outliers_cost_less_once_they_are_moved():
    sample, weight = outlying()
    assert search(sample, np.abs(sample).max(axis=0), [weight]).error_before > 0
    found = search(sample, np.abs(sample).max(axis=0), [weight])
    assert found.error_after < 0.2 * found.error_before


def test_an_error_counts_by_the_length_of_what_it_disturbs():
    exact = np.array([[3.0, 4.0], [6.0, 8.0], [0.0, 0.001]], np.float32)
    found = exact + np.float32(1)
    assert relative_error(found, exact) == pytest.approx(2 / 25)  # of 2 / 25, 2 / 100 and two millions
    assert relative_error(found, exact, np.array([10, 1, 2], np.float32)) == pytest.approx((2 / 100 + 2 + 2 / 4) / 3)


def test_a_token_of_great_length_does_not_decide():
    """The first token of a row: what is wrong with it vanishes in its own residual stream."""
    sample, weight = outlying()
    lengths = np.ones(len(sample), np.float32)
    sample[0], lengths[0] = sample[0] * 1000, 1e9
    act = np.abs(sample[1:]).max(axis=0)
    whole = output_error(sample, act, weight, np.ones(48, np.float32), lengths)
    rest = output_error(sample[1:], act, weight, np.ones(48, np.float32), lengths[1:])
    assert whole == pytest.approx(rest * (len(sample) - 1) / len(sample), rel=1e-3)


def test_channels_that_share_a_factor_get_one():
    shared = np.arange(8) % 4
    factors = smoothing_factors(np.arange(1, 9, dtype=np.float32), np.ones(8, np.float32), 0.5, shared)
    assert np.array_equal(factors[:4], factors[4:])
    assert len(np.unique(factors)) == 4


def test_channels_that_were_never_excited_keep_their_weights():
    act = np.array([0, 1, 2], np.float32)
    assert smoothing_factors(act, np.ones(3, np.float32), 0.5)[0] == 1
