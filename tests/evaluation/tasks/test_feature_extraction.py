import numpy as np
import pytest

from piston.core.gates import parse_gate
from piston.evaluation.tasks.feature_extraction import DEFAULTS, METRICS, cosine


def test_the_cosine_does_not_depend_on_lengths():
    left, right = np.array([[3, 0], [1, 1]], np.float32), np.array([[2, 0], [0, 5]], np.float32)
    np.testing.assert_allclose(cosine(left, right), [1, np.sqrt(0.5)], rtol=1e-6)


@pytest.mark.parametrize("scheme", ["fp", "w8", "w8a8", "w4"])
def test_every_scheme_has_a_gate_by_default(scheme):
    assert parse_gate(DEFAULTS[scheme], METRICS).metric.name == "cosine"
