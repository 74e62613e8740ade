import numpy as np
import pytest

from piston.core.errors import EngineError
from piston.evaluation.distributions import compare, nll

ROWS, VOCAB = 23, 57


def rows(seed, scale=4.0, offset=0.0):
    return (np.random.default_rng(seed).normal(size=(ROWS, VOCAB)) * scale + offset).astype(np.float32)


TARGETS = [int(target) for target in np.random.default_rng(9).integers(VOCAB, size=ROWS)]


def log_softmax(logits):
    """By the textbook, in extended precision, with nothing subtracted first."""
    wide = logits.astype(np.longdouble)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


@pytest.fixture(params=[1, 57 * 5, 2**19], ids=["a row at a time", "five rows", "all rows"])
def block(request, monkeypatch):
    monkeypatch.setattr("piston.evaluation.distributions._BLOCK", request.param)


def test_nll_is_the_textbook_log_softmax(block):
    expected = -log_softmax(rows(0))[np.arange(ROWS), TARGETS]
    np.testing.assert_allclose(nll(rows(0), TARGETS), expected.astype(float), rtol=1e-13)


def test_compare_is_the_textbook_definition(block):
    reference, candidate = rows(0), rows(1)
    p, q = log_softmax(reference), log_softmax(candidate)
    found = compare(reference, candidate, TARGETS)
    np.testing.assert_allclose(found.kl, (np.exp(p) * (p - q)).sum(axis=1).astype(float), rtol=1e-12)
    np.testing.assert_allclose(found.reference_nll, -p[np.arange(ROWS), TARGETS].astype(float), rtol=1e-13)
    np.testing.assert_allclose(found.candidate_nll, -q[np.arange(ROWS), TARGETS].astype(float), rtol=1e-13)
    assert list(found.is_same_top) == [np.argmax(a) == np.argmax(b) for a, b in zip(p, q, strict=True)]
    expected = [np.mean(np.abs(a - b)) for a, b in zip(reference.astype(float), candidate.astype(float), strict=True)]
    np.testing.assert_allclose(found.logit_distance, expected, rtol=1e-13)


def test_small_divergences_keep_their_digits():
    reference = rows(0)
    candidate = reference + (rows(1) * 1e-3).astype(np.float32)
    p, q = log_softmax(reference), log_softmax(candidate)
    expected = (np.exp(p) * (p - q)).sum(axis=1).astype(float)
    assert expected.max() < 1e-4
    np.testing.assert_allclose(compare(reference, candidate, TARGETS).kl, expected, atol=1e-14)


def test_equal_logits_diverge_by_exactly_nothing():
    found = compare(rows(0, offset=30), rows(0, offset=30), TARGETS)
    assert (found.kl == 0).all()
    assert found.is_same_top.all()
    assert (found.logit_distance == 0).all()


def test_divergence_is_of_the_candidate_from_the_reference_not_the_reverse():
    sure, unsure = np.array([[10, 0, 0]], np.float32), np.array([[0, 0, 0]], np.float32)
    assert compare(sure, unsure, [0]).kl[0] == pytest.approx(np.log(3), rel=0.01)
    assert compare(unsure, sure, [0]).kl[0] == pytest.approx(np.log(1 + 2 * np.exp(-10)) + 20 / 3 - np.log(3))


def test_logits_that_differ_by_a_constant_diverge_by_nothing():
    assert compare(rows(0), rows(0) + np.float32(8), TARGETS).kl.max() < 1e-6


def test_logits_too_large_for_exp_are_scored():
    logits = np.array([[3e4, -3e4, 0]], np.float32)
    assert nll(logits, [0])[0] == 0
    assert nll(logits, [1])[0] == 6e4


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_are_an_engine_error(broken):
    logits = rows(0)
    logits[3, 5] = broken
    with pytest.raises(EngineError, match="NaN or infinity"):
        nll(logits, TARGETS)
    with pytest.raises(EngineError, match="NaN or infinity"):
        compare(rows(1), logits, TARGETS)
