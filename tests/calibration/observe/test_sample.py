import numpy as np
import pytest

from piston.calibration.observe import sample
from piston.calibration.observe.sample import Lengths, Sample


def array_of(number, tokens=20):
    return np.full((1, tokens, 3), number, np.float32) + np.arange(tokens, dtype=np.float32)[:, None] / 100


def test_the_first_token_and_others_of_each_array_are_kept():
    found = Sample("value", 4)
    found.update(array_of(1))
    found.update(array_of(2))
    assert found.tokens[:, 0].tolist() == pytest.approx(
        [1, 1.04, 1.09, 1.14, 1.19, 2, 2.04, 2.09, 2.14, 2.19], abs=0.01
    )


def test_what_is_kept_has_a_bound_and_is_spread_over_all_arrays(monkeypatch):
    monkeypatch.setattr(sample, "MOST", 50)
    found = Sample("value", 4)
    for number in range(1000):
        found.update(array_of(number))
    firsts = [int(part[0, 0]) for part in found.parts]
    assert len(found.tokens) <= 50
    assert len(firsts) >= 5
    assert set(np.diff(firsts)) == {found.every}


def test_tokens_and_their_lengths_stay_side_by_side(monkeypatch):
    monkeypatch.setattr(sample, "MOST", 50)
    tokens, lengths = Sample("value", 4), Lengths("value", 4)
    for number in range(100):
        tokens.update(array_of(number))
        lengths.update(array_of(number))
    np.testing.assert_allclose(lengths.tokens[:, 0], np.linalg.norm(tokens.tokens, axis=1), rtol=1e-6)


@pytest.mark.parametrize("stop", [0, 1, 7, 30])
def test_an_interrupted_sample_goes_on_as_if_it_was_not(monkeypatch, stop):
    monkeypatch.setattr(sample, "MOST", 50)
    whole, first, second = (Sample("value", 4) for _ in range(3))
    for number in range(60):
        whole.update(array_of(number))
        if number < stop:
            first.update(array_of(number))
    second.restore(first.state())
    for number in range(stop, 60):
        second.update(array_of(number))
    np.testing.assert_array_equal(whole.tokens, second.tokens)
