import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from piston.data.overlap import NGRAM, overlap

RNG = np.random.default_rng(5)


def rows(num_rows, seq_len=40):
    return RNG.integers(0, 50_000, (num_rows, seq_len))


def naive(evaluated, calibrated, n=NGRAM):
    known = {tuple(row[i : i + n]) for row in calibrated for i in range(len(row) - n + 1)}
    grams = [tuple(row[i : i + n]) for row in evaluated for i in range(len(row) - n + 1)]
    return sum(gram in known for gram in grams), len(grams)


def test_rows_of_different_text_share_nothing():
    found = overlap(rows(5), rows(7))
    assert (found.rows, found.num_shared, found.share) == ((), 0, 0.0)
    assert found.num_ngrams == 5 * (40 - NGRAM + 1)


def test_the_same_rows_share_everything():
    same = rows(3)
    assert overlap(same, same).share == 1.0


@given(st.integers(0, 40 - NGRAM), st.integers(0, 40 - NGRAM), st.integers(NGRAM, NGRAM + 9))
def test_a_shared_passage_is_found_wherever_it_stands(source, goal, size):
    calibrated, evaluated = rows(4), rows(4)
    size = min(size, 40 - source, 40 - goal)
    evaluated[2, goal : goal + size] = calibrated[1, source : source + size]
    found = overlap(evaluated, calibrated)
    assert found.rows == (2,)
    assert (found.num_shared, found.num_ngrams) == naive(evaluated, calibrated)


def test_twelve_tokens_in_a_row_are_no_overlap():
    calibrated, evaluated = rows(1), rows(1)
    evaluated[0, 5:17] = calibrated[0, 5:17]
    assert overlap(evaluated, calibrated).num_shared == 0


def test_runs_of_few_tokens_are_no_overlap():
    rule = np.tile([7, 7, 9, 7], (1, 10))
    assert overlap(rule, rule).num_ngrams == 0


def test_rows_may_have_any_lengths():
    text = RNG.integers(0, 50_000, 100)
    assert overlap([text[3:9], text[20:50]], [text, np.array([], np.int64)]).rows == (1,)
    assert overlap([text], []).rows == ()
