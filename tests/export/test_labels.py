from types import SimpleNamespace

import pytest

from piston.core.errors import CheckpointError
from piston.export.labels import labels_of, problem_of


def config(labels, problem=None):
    return SimpleNamespace(id2label=labels, problem_type=problem)


def test_labels_come_in_the_order_of_the_logits():
    assert labels_of("toy", config({1: "good", 0: "bad"}), {}) == (["bad", "good"], [])


def test_labels_without_names_are_remarked():
    labels, (remark,) = labels_of("toy", config({0: "LABEL_0", 1: "LABEL_1"}), {})
    assert labels == ["LABEL_0", "LABEL_1"]
    assert "does not name its labels" in remark


def test_a_logit_without_a_label_is_refused():
    with pytest.raises(CheckpointError, match=r"names 2 labels, and none has the number 1; they must be 0 to 1"):
        labels_of("toy", config({0: "bad", 2: "good"}), {})


def test_a_name_that_two_labels_have_is_refused():
    with pytest.raises(CheckpointError, match="names the label 'bad' twice"):
        labels_of("toy", config({0: "bad", 1: "bad"}), {})


@pytest.mark.parametrize("label", [None, "", " ", {"a": 1}, ["a"]])
def test_a_label_without_a_name_is_refused(label):
    with pytest.raises(CheckpointError, match=r"id2label of toy names label 1 .*; it must be a text"):
        labels_of("toy", config({0: "bad", 1: label}), {})


def test_numbers_are_names():
    assert labels_of("toy", config({0: 1, 1: 5}), {}) == (["1", "5"], [])


def test_names_that_transformers_drops_are_refused():
    parsed = config({0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"})
    with pytest.raises(CheckpointError, match="id2label of toy names 2 labels, but num_labels says 3"):
        labels_of("toy", parsed, {"id2label": {"0": "bad", "1": "good"}, "num_labels": 3})
    assert labels_of("toy", parsed, {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 3})[0][2] == "LABEL_2"


def test_names_in_another_order_in_label2id_are_remarked():
    _, (remark,) = labels_of("toy", config({0: "bad", 1: "good"}), {"label2id": {"bad": 1, "good": 0}})
    assert remark.startswith("label2id in config.json contradicts id2label")
    _, remarks = labels_of("toy", config({0: "LABEL_0", 1: "LABEL_1"}), {"label2id": {"bad": 0, "good": 1}})
    assert len(remarks) == 2
    assert labels_of("toy", config({0: "bad", 1: "good"}), {"label2id": {"bad": 0, "good": 1}})[1] == []


@pytest.mark.parametrize(
    ("given", "num_labels", "expected"),
    [
        (None, 1, "multi_label"),  # transformers' pipeline puts one logit through a sigmoid
        (None, 2, "single_label"),
        ("regression", 1, "regression"),
        ("multi_label_classification", 3, "multi_label"),
    ],
)
def test_what_logits_mean_is_what_the_pipeline_makes_of_them(given, num_labels, expected):
    assert problem_of("toy", config({}, given), num_labels) == expected


def test_a_problem_type_that_there_is_not_is_refused():
    with pytest.raises(CheckpointError, match="problem_type of toy is 'other'"):
        problem_of("toy", config({}, "other"), 2)
