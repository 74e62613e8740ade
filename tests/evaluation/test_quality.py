"""Figures on labelled data, each by hand on a case small enough to count."""

import math

import numpy as np
import pytest

from piston.evaluation.quality import (
    accuracy,
    answer_scores,
    entities,
    macro_f1,
    micro_f1,
    ndcg,
    normalized,
    spearman,
)


def test_accuracy_is_the_share_of_equal_labels():
    assert accuracy(["a", "b", "b", "a"], ["a", "b", "a", "a"]) == 0.75


def test_macro_f1_is_the_mean_over_labels_however_rare():
    # a: 1 hit, 2 found, 1 true: 2/3. b: 1 hit, 1 found, 2 true: 2/3. c: none found, none true on one side: 0 of 1.
    assert macro_f1(["a", "a", "b", "b"], ["a", "b", "b", "c"]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_micro_f1_counts_items_of_all_sets():
    assert micro_f1([{"x", "y"}, set()], [{"x"}, {"z"}]) == pytest.approx(2 * 1 / (2 + 2))
    assert micro_f1([set()], [set()]) == 1.0


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [("PER", 0, 1), ("LOC", 3, 3)]),
        (["B-PER", "B-PER"], [("PER", 0, 0), ("PER", 1, 1)]),  # B- begins a new one
        (["I-PER", "I-LOC"], [("PER", 0, 0), ("LOC", 1, 1)]),  # another type begins one without B-
        (["O", "I-PER", "O", "I-PER"], [("PER", 1, 1), ("PER", 3, 3)]),
        (["PER", "PER"], [("PER", 0, 1)]),  # tags without prefixes
    ],
)
def test_entities_are_those_of_conll(tags, expected):
    assert entities(tags) == expected


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert normalized("The  Denver Broncos!") == "denver broncos"
    assert answer_scores("the Broncos", ["Denver Broncos", "Broncos."]) == (1.0, 1.0)
    assert answer_scores("Denver", ["Denver Broncos"]) == (0.0, pytest.approx(2 * 1 / (1 + 2)))
    assert answer_scores("", []) == (1.0, 1.0)  # no answer, and rightly
    assert answer_scores("Denver", []) == (0.0, 0.0)


def test_ndcg_discounts_by_the_logarithm_of_the_place():
    # Order by score: gains 1, 3, 2; ideal 3, 2, 1.
    found = 1 + 3 / math.log2(3) + 2 / 2
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    assert ndcg([0.1, 0.9, 0.5], [2, 1, 3]) == pytest.approx(found / ideal)
    assert ndcg([0.1, 0.9], [0, 0]) == 1.0
    assert ndcg([2, 1], [0, 1], top=1) == 0.0


def test_without_variation_there_is_no_rank_correlation():
    assert spearman([1, 1, 1], [1, 2, 3]) == 0.0


def test_the_rank_correlation_of_one_order_is_1_and_of_the_other_minus_1():
    assert spearman([0.1, 0.5, 0.7], [1, 20, 21]) == pytest.approx(1)
    assert spearman([0.1, 0.5, 0.7], [3, 2, 1]) == pytest.approx(-1)


def test_equal_values_share_the_mean_of_their_ranks():
    # Ranks 1, 2.5, 2.5, 4 and 1, 2, 3, 4: covariance 4.5, deviations of sqrt(4.5) and sqrt(5) by hand.
    assert spearman([1, 2, 2, 3], [1, 2, 3, 4]) == pytest.approx(4.5 / np.sqrt(4.5 * 5))
