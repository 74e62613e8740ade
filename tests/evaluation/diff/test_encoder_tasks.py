import json
from types import SimpleNamespace

import numpy as np
import pytest

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.diff import (
    DiffOptions,
    question_answering,
    text_classification,
    text_ranking,
    token_classification,
)
from piston.runtime.tasks.question_answering import Answer
from piston.runtime.tasks.text_ranking import Ranked
from piston.runtime.tasks.token_classification import Span

QUIET = Progress(quiet=True)


def classifier(scores, problem_type="single_label", labels=("no", "yes"), thresholds=None):
    return SimpleNamespace(
        labels=labels,
        problem_type=problem_type,
        thresholds=thresholds or {},
        scores=lambda texts, *, truncate: np.array(scores, np.float32)[: len(texts)],
    )


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("first\nsecond\nthird\n")
    return path


def test_flipped_labels_are_listed_with_their_margins_the_largest_first(texts):
    before = classifier([[0.9, 0.1], [0.51, 0.49], [0.2, 0.8]])
    after = classifier([[0.3, 0.7], [0.49, 0.51], [0.1, 0.9]])
    found = text_classification.differences(before, after, texts, DiffOptions(), QUIET)
    assert [(change.record, change.before, change.after) for change in found.changes] == [
        (1, "no", "yes"),
        (2, "no", "yes"),
    ]
    assert found.changes[0].note == "no 0.900 -> 0.300; yes 0.100 -> 0.700"
    assert found.figures[0][:2] == ("equal_labels", pytest.approx(1 / 3))


def test_thresholds_are_fitted_to_give_each_label_as_often_as_before(texts):
    before = classifier([[0.9, 0.8], [0.6, 0.1], [0.1, 0.2]], "multi_label")
    after = classifier([[0.5, 0.45], [0.4, 0.2], [0.2, 0.1]], "multi_label")
    found = text_classification.differences(before, after, texts, DiffOptions(), QUIET)
    figures = {name: value for name, value, _ in found.figures}
    assert figures["threshold:no"] == pytest.approx(0.3)  # between 0.4, the second of two, and 0.2
    assert figures["threshold:yes"] == pytest.approx(0.325)
    assert {change.record: change.after for change in found.changes} == {1: "no", 2: "none"}


def test_thresholds_of_the_bundle_decide(texts):
    scores = [[0.4, 0.1], [0.2, 0.1], [0.9, 0.1]]
    found = text_classification.differences(
        classifier(scores, "multi_label"),
        classifier(scores, "multi_label", thresholds={"no": 0.3}),
        texts,
        DiffOptions(),
        QUIET,
    )
    assert [(change.record, change.before, change.after) for change in found.changes] == [(1, "none", "no")]


def test_values_of_a_regression_change_when_they_move_by_much(texts):
    before = classifier([[0.0], [10.0], [5.0]], "regression", labels=("score",))
    after = classifier([[0.1], [8.0], [5.0]], "regression", labels=("score",))
    found = text_classification.differences(before, after, texts, DiffOptions(), QUIET)
    assert [(change.record, change.before, change.after) for change in found.changes] == [(2, "10", "8")]


def test_models_of_other_labels_are_refused(texts):
    with pytest.raises(MisuseError, match="different labels"):
        text_classification.differences(
            classifier([[1, 0]] * 3), classifier([[1, 0]] * 3, labels=("a", "b")), texts, DiffOptions(), QUIET
        )


def tagger(*spans):
    return SimpleNamespace(tag=lambda texts, *, truncate: [list(found) for found in spans])


def test_spans_that_were_lost_gained_or_renamed_are_listed(texts):
    berlin, moved = Span("LOC", "Berlin", 0, 6, 0.9), Span("PER", "Berlin", 0, 6, 0.6)
    bonn = Span("LOC", "Bonn", 8, 12, 0.8)
    found = token_classification.differences(
        tagger([berlin], [bonn], []), tagger([moved], [bonn], []), texts, DiffOptions(), QUIET
    )
    (change,) = found.changes
    assert (change.record, change.before, change.after) == (1, "LOC: Berlin (0.90)", "PER: Berlin (0.60)")
    assert found.figures[0][1] == pytest.approx(0.5)


def answerer(*answers):
    return SimpleNamespace(answer_all=lambda pairs: list(answers))


def test_answers_of_other_characters_are_changes(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question": "Where?", "context": "Bonn or Berlin"}) + "\n")
    bonn, berlin = Answer("Bonn", 0, 4, 0.6, 0.1), Answer("Berlin", 8, 14, 0.5, 0.1)
    found = question_answering.differences(answerer(bonn), answerer(berlin), path, DiffOptions(), QUIET)
    assert [(change.text, change.before, change.after) for change in found.changes] == [("Where?", "Bonn", "Berlin")]
    assert question_answering.differences(answerer(bonn), answerer(bonn), path, DiffOptions(), QUIET).changes == ()


def ranker(order):
    return SimpleNamespace(rerank=lambda query, documents, *, truncate: [Ranked(index, 1.0) for index in order])


def test_documents_that_changed_places_are_changes(tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps({"query": "q", "documents": ["a", "b", "c"]}) + "\n")
    found = text_ranking.differences(ranker([0, 1, 2]), ranker([0, 2, 1]), path, DiffOptions(), QUIET)
    (change,) = found.changes
    assert (change.before, change.after) == ("1. a\n2. b\n3. c", "1. a\n2. c\n3. b")
    assert {name: value for name, value, _ in found.figures} == {
        "kendall_tau": pytest.approx(1 / 3),  # two of three pairs agree, one does not
        "equal_first": 1.0,
    }
    assert text_ranking.differences(ranker([2, 0, 1]), ranker([2, 0, 1]), path, DiffOptions(), QUIET).changes == ()


def test_the_tau_of_opposite_orders_is_minus_1():
    assert text_ranking.kendall_tau([0, 1, 2, 3], [3, 2, 1, 0]) == -1


@pytest.mark.parametrize("record", [{"query": "q", "documents": []}, {"query": "q", "documents": "a"}])
def test_documents_must_be_a_list_of_texts(record, tmp_path):
    path = tmp_path / "queries.jsonl"
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(MisuseError, match="list of texts"):
        text_ranking.differences(ranker([0]), ranker([0]), path, DiffOptions(), QUIET)
