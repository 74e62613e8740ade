import numpy as np
import pytest

from piston.core.gates import parse_gate
from piston.evaluation.tasks.feature_extraction import DEFAULTS, METRICS, cosine, spearman


def test_the_rank_correlation_of_one_order_is_1_and_of_the_other_minus_1():
    assert spearman([0.1, 0.5, 0.7], [1, 20, 21]) == pytest.approx(1)
    assert spearman([0.1, 0.5, 0.7], [3, 2, 1]) == pytest.approx(-1)


def test_equal_values_share_the_mean_of_their_ranks():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, deviations of sqrt(4.5) and sqrt(5) by hand.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))


def test_the_cosine_does_not_depend_on_lengths():
    left, right = np.array([[3, 0], [1, 1]], np.float32), np.array([[2, 0], [0, 5]], np.float32)
    np.testing.assert_allclose(cosine(left, right), [1, np.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["fp", "w8", "w8a8", "w4"])
def test_every_scheme_has_a_gate_by_default(scheme):
    assert parse_gate(DEFAULTS[scheme], METRICS).metric.name == "cosine"
