"""Figures of a model beside those of the float model."""

import pytest

from piston.evaluation.encoders import with_changes


def test_the_change_of_a_negative_figure_has_the_sign_of_its_direction():
    found = with_changes({"spearman": -0.1, "accuracy": 0.4}, {"spearman": -0.2, "accuracy": 0.5})
    assert found["spearman_change"] == pytest.approx(0.5)
    assert found["accuracy_change"] == pytest.approx(-0.2)
