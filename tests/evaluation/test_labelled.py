import json

import pytest

from piston.core.errors import MisuseError
from piston.evaluation.labelled import (
    Answered,
    Labelled,
    Scored,
    Tagged,
    read_answered,
    read_labelled,
    read_scored,
    read_tagged,
)

NAMES = ("bad", "good")


@pytest.fixture
def file(tmp_path):
    def write(name, content):
        text = content if isinstance(content, str) else "\n".join(map(json.dumps, content))
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_labels_are_names_or_numbers(file):
    table = file("x.tsv", "sentence\tlabel\none\tgood\ntwo\t0.0\nthree\t1\n")
    assert read_labelled(table, NAMES) == [
        Labelled(texts=("one",), labels=("good",)),
        Labelled(texts=("two",), labels=("bad",)),
        Labelled(texts=("three",), labels=("good",)),
    ]


def test_a_text_may_have_several_labels_and_a_second_text(file):
    records = file("x.jsonl", [{"text": "one", "text_pair": "two", "labels": ["bad", 1]}, {"text": "no", "labels": []}])
    assert read_labelled(records, NAMES) == [
        Labelled(texts=("one", "two"), labels=("bad", "good")),
        Labelled(texts=("no",), labels=()),
    ]


def test_a_regression_has_values(file):
    assert read_labelled(file("x.csv", "text,label\na,2.5\n"), (), is_regression=True)[0].value == 2.5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,label\na,fair\n", r"line 2: the model has no label 'fair'; it has .\"bad\", \"good\"."),
        ("text,label\na,2\n", "no label '2'"),
        ("text,class\na,good\n", "has no field 'label' or 'labels'"),
        ("text,label\na," + "9" * 400 + "\n", "the model has no label"),
        ("", "has nothing"),
    ],
)
def test_what_is_no_example_is_refused_by_its_place(file, content, message):
    with pytest.raises(MisuseError, match=message):
        read_labelled(file("x.csv", content), NAMES)


def test_plain_text_has_no_labels(file):
    with pytest.raises(MisuseError, match=r"has no records; labelled examples are \.jsonl"):
        read_labelled(file("x.txt", "one"), NAMES)


def test_words_have_tags_by_name_or_number(file):
    found = read_tagged(file("x.jsonl", [{"tokens": ["Ann", "sings"], "ner_tags": [1, "O"]}]), ("O", "B-PER"))
    assert found == [Tagged(words=("Ann", "sings"), tags=("B-PER", "O"))]
    with pytest.raises(MisuseError, match="lists of one length"):
        read_tagged(file("x.jsonl", [{"tokens": ["Ann"], "tags": []}]), ("O",))


def test_questions_come_in_the_form_of_squad_or_as_records(file):
    qas = [
        {"id": "1", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]},
        {"id": "2", "question": "Why?", "answers": [], "is_impossible": True},
    ]
    paragraphs = [{"context": "Ann sings", "qas": qas}]
    squad = file("x.json", json.dumps({"version": "2", "data": [{"paragraphs": paragraphs}]}))
    records = [
        {"question": "Who?", "context": "Ann sings", "answers": {"text": ["Ann"], "answer_start": [0]}},
        {"question": "Why?", "context": "Ann sings", "answers": []},
    ]
    expected = [
        Answered(question="Who?", context="Ann sings", answers=("Ann",)),
        Answered(question="Why?", context="Ann sings", answers=()),
    ]
    assert read_answered(squad) == read_answered(file("x.jsonl", records)) == expected


def test_pairs_have_scores_and_a_table_may_lack_a_header(file):
    names = ("sentence1",), ("sentence2",)
    expected = [Scored(first="a", second="b", score=2.5), Scored(first="c", second="d", score=0.0)]
    assert read_scored(file("x.csv", "a,b,2.5\nc,d,0\n"), *names) == expected
    assert read_scored(file("x.csv", '"a, b","a, b",5\n'), *names) == [Scored(first="a, b", second="a, b", score=5.0)]
    assert read_scored(file("y.csv", "sentence1,sentence2,score\na,b,2.5\nc,d,0\n"), *names) == expected


@pytest.mark.parametrize("answers", [5, None, "Paris", [None], {"text": 5}, {"text": None}, [{"text": 1}]])
def test_answers_that_are_no_texts_are_refused(file, answers):
    path = file("x.json", [{"question": "where?", "context": "in Paris", "answers": answers}])
    with pytest.raises(MisuseError, match="item 1: answers must be texts"):
        read_answered(path)


@pytest.mark.parametrize("score", [10**400, float("nan"), float("inf"), True, None, "x"])
def test_scores_that_are_no_numbers_are_refused(file, score):
    path = file("x.jsonl", [{"sentence1": "a", "sentence2": "b", "score": score}])
    with pytest.raises(MisuseError, match="line 1: the score must be a number"):
        read_scored(path, ("sentence1",), ("sentence2",))


def test_lines_of_a_table_without_a_header_are_counted_as_in_the_file(file):
    with pytest.raises(MisuseError, match="line 2: the score must be a number"):
        read_scored(file("x.csv", "a,b,2.5\nc,d,much\n"), ("sentence1",), ("sentence2",))
