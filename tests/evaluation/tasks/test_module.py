from pathlib import Path

import numpy as np
import pytest

from piston.core.console import Progress
from piston.core.errors import EngineError
from piston.evaluation.tasks import module

FLOAT, QUANTIZED = Path("float"), Path("quantized")


@pytest.fixture
def compare(monkeypatch):
    """compare(outputs of the float model, of the other) for one run."""

    def run(exact, found):
        outputs = {FLOAT: exact, QUANTIZED: found}
        monkeypatch.setattr(module, "_outputs", lambda path, *_: outputs[path])
        return module.compare(QUANTIZED, FLOAT, [{"x": np.zeros(1)}], Progress(quiet=True)).values

    return run


def test_the_worst_output_decides(compare):
    exact = {"near": np.array([3.0, 4.0]), "far": np.array([3.0, 4.0])}
    found = compare(exact, {"near": np.array([3.0, 4.0]), "far": np.array([3.0, 3.0])})
    assert found["error"] == pytest.approx(1 / 5)
    assert found["cosine"] == pytest.approx(21 / (5 * 18**0.5))


def test_numbers_that_are_not_finite_in_the_float_model_are_left_out(compare):
    exact = {"scores": np.array([3.0, -np.inf, 4.0])}
    assert compare(exact, {"scores": np.array([3.0, -np.inf, 3.0])})["error"] == pytest.approx(1 / 5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_an_error_whatever_other_outputs_are(compare, wrong):
    exact = {"first": np.array([3.0, 4.0]), "second": np.array([3.0, 4.0])}
    with pytest.raises(EngineError, match=r"The output 'first' of quantized has NaN, or other infinities"):
        compare(exact, {"first": np.array([3.0, wrong]), "second": np.array([3.0, 4.0])})


@pytest.mark.parametrize("lost", [-65504.0, np.inf, np.nan])
def test_an_infinity_that_is_lost_is_an_error(compare, lost):
    with pytest.raises(EngineError, match="other infinities than that of float"):
        compare({"scores": np.array([3.0, -np.inf, 4.0])}, {"scores": np.array([3.0, lost, 4.0])})
