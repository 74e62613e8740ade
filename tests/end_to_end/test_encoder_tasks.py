"""Encoder tasks from a checkpoint to an answer, compared with transformers' pipelines."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from encoder_fixtures import MODELS, encoder_toys  # noqa: F401 - fixture
from transformers import AutoTokenizer, pipeline

from piston.core.bundle.manifest import Manifest, record_files
from piston.runtime import load

# Accents, an emoji with a modifier, Chinese, line ends of Windows, unknown characters alone.
TEXTS = ["hello world", "Héllo Wörld, paris!", "你好 paris 👍🏽 in", "in\r\nparis\tworld?", "ßßß", "a" * 15]


def pipe(toys, name, task):
    toys.checkpoint(name)
    directory = toys.root / name / "checkpoint"
    return pipeline(task, model=toys.models[name], tokenizer=AutoTokenizer.from_pretrained(directory))


@pytest.mark.parametrize("name", ["single", "multi", "regression"])
def test_labels_and_scores_are_those_of_the_pipeline(encoder_toys, name):  # noqa: F811
    expected = [pipe(encoder_toys, name, "text-classification")(text, top_k=None) for text in TEXTS]
    with load(encoder_toys.bundle(name)) as model:
        found = model.classify(TEXTS)
    for wanted, scores in zip(expected, found, strict=True):
        assert [score.label for score in scores] == [item["label"] for item in wanted]
        np.testing.assert_allclose([score.score for score in scores], [item["score"] for item in wanted], atol=1e-5)


def test_a_pair_of_texts_is_read_together(encoder_toys):  # noqa: F811
    pairs = [("hello world", "paris"), ("in", "a b c")]
    classifier = pipe(encoder_toys, "single", "text-classification")
    expected = [classifier({"text": text, "text_pair": pair}, top_k=None) for text, pair in pairs]
    with load(encoder_toys.bundle("single")) as model:
        found = model.classify(pairs, top_k=1)
    for wanted, (best,) in zip(expected, found, strict=True):
        assert best.label == wanted[0]["label"]
        assert best.score == pytest.approx(wanted[0]["score"], abs=1e-5)


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_spans_are_those_of_the_pipeline(encoder_toys, aggregation):  # noqa: F811
    tagger = pipe(encoder_toys, "tagger", "token-classification")
    with load(encoder_toys.bundle("tagger")) as model:
        found = model.tag(TEXTS, aggregation=aggregation)
    assert any(found)
    for text, spans in zip(TEXTS, found, strict=True):
        wanted = tagger(text, aggregation_strategy=aggregation)
        name = "entity" if aggregation == "none" else "entity_group"
        assert [(span.label, span.start, span.end) for span in spans] == [
            (item[name], item["start"], item["end"]) for item in wanted
        ]
        np.testing.assert_allclose([span.score for span in spans], [item["score"] for item in wanted], atol=1e-5)
        assert all(span.text == text[span.start : span.end] for span in spans)


def test_a_long_text_is_tagged_in_the_windows_of_the_pipeline(encoder_toys):  # noqa: F811
    text = "hello paris in world " * 8
    tagger = pipe(encoder_toys, "tagger", "token-classification")
    wanted = tagger(text, aggregation_strategy="simple", stride=6)
    with load(encoder_toys.bundle("tagger")) as model:
        (found,) = model.tag([text], stride=6)
    assert [(span.label, span.start, span.end) for span in found] == [
        (item["entity_group"], item["start"], item["end"]) for item in wanted
    ]


def expected_answer(toys, question, context, *, window, stride, longest=15):
    """The best span as transformers' pipeline (version 4) chose it: token by token, in plain loops."""
    tokenizer = AutoTokenizer.from_pretrained(toys.checkpoint("answerer"))
    rows = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=window,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    best, no_answer = (-1.0, 0, 0), 1.0
    for row in range(len(rows["input_ids"])):
        given = {name: torch.tensor([rows[name][row]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = toys.models["answerer"](**given)
        allowed = [sequence == 1 for sequence in rows.sequence_ids(row)]
        masked = torch.tensor([not (ok or place == 0) for place, ok in enumerate(allowed)])
        starts = output.start_logits[0].masked_fill(masked, -1e4).softmax(0).tolist()
        ends = output.end_logits[0].masked_fill(masked, -1e4).softmax(0).tolist()
        no_answer = min(no_answer, starts[0] * ends[0])
        offsets = rows["offset_mapping"][row]
        for first, start in enumerate(starts):
            for last in range(first, min(first + longest, len(ends))):
                if allowed[first] and allowed[last] and start * ends[last] > best[0]:
                    words = rows.token_to_word(row, first), rows.token_to_word(row, last)
                    places = [rows.word_to_chars(row, word, sequence_index=1) for word in words]
                    best = (start * ends[last], places[0].start, places[1].end)
                    assert offsets[first][0] >= best[1]
    return best, no_answer


@pytest.mark.parametrize("repeats", [1, 12])
def test_the_answer_is_the_best_span_of_all_windows(encoder_toys, repeats):  # noqa: F811
    question, context = "in paris?", "Hello wörld 你好 in paris, " * repeats
    (score, start, end), no_answer = expected_answer(encoder_toys, question, context, window=20, stride=5)
    with load(encoder_toys.bundle("answerer")) as model:
        found = model.answer(question, context, window=20, stride=5)
        empty = model.answer(question, context, window=20, stride=5, allow_no_answer=True)
    assert (found.start, found.end, found.text) == (start, end, context[start:end])
    np.testing.assert_allclose([found.score, found.no_answer_score], [score, no_answer], rtol=1e-3)
    assert empty.text == ("" if no_answer > score else found.text)


def test_documents_come_best_first_with_the_scores_of_the_cross_encoder(encoder_toys):  # noqa: F811
    query, documents = "paris?", ["hello world", "in paris", "你好", "a b c"]
    tokenizer = AutoTokenizer.from_pretrained(encoder_toys.checkpoint("reranker"))
    logits = []
    for document in documents:
        with torch.no_grad():
            given = tokenizer(query, document, return_tensors="pt", return_token_type_ids=True)
            logits.append(encoder_toys.models["reranker"](**given).logits[0, 0])
    wanted = torch.stack(logits)
    with load(encoder_toys.bundle("reranker")) as model:
        found = model.rerank(query, documents)
        raw = model.rerank(query, documents, top_n=2, raw_scores=True)
    order = torch.argsort(-wanted).tolist()
    assert [item.index for item in found] == order
    np.testing.assert_allclose([item.score for item in found], wanted.sigmoid()[order], atol=1e-5)
    np.testing.assert_allclose([item.score for item in raw], wanted[order[:2]], atol=2e-5)


COMMANDS = {
    "single": (("--text", "hello", "--text", "paris", "--top-k", "1"), ["results"]),
    "tagger": (("--text", "hello paris", "--aggregation", "first"), ["results"]),
    "answerer": (("--question", "who?", "--context", "hello paris"), ["text", "start", "end"]),
    "reranker": (("--query", "who?", "--document", "hello", "--document", "paris"), ["results"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_answers_for_people_and_as_json(piston, encoder_toys, name):  # noqa: F811
    words, fields = COMMANDS[name]
    shown = piston("run", encoder_toys.bundle(name), *words)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.strip()
    found = json.loads(piston("run", encoder_toys.bundle(name), *words, "--json").out)
    assert set(fields) <= set(found)


def test_the_command_pairs_texts(piston, refused, encoder_toys):  # noqa: F811
    bundle = encoder_toys.bundle("single")
    found = json.loads(piston("run", bundle, "--text", "hello", "--text-pair", "paris", "--json").out)
    with load(bundle) as model:
        (expected,) = model.classify([("hello", "paris")])
    assert found["results"][0][0] == {"label": expected[0].label, "score": pytest.approx(expected[0].score)}
    assert (
        "1 --text and 2 --text-pair" in refused("run", bundle, "--text", "a", "--text-pair", "b", "--text-pair", "c")[1]
    )


def test_a_command_for_another_task_says_which_the_bundle_has(refused, encoder_toys):  # noqa: F811
    status, message = refused("run", encoder_toys.bundle("single"), "--question", "who?", "--context", "x")
    assert status == 2
    assert "is for text-classification" in message


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_of_every_task_is_verified_and_a_damaged_answer_is_found(piston, encoder_toys, tmp_path, name):  # noqa: F811
    bundle = encoder_toys.bundle(name)
    found = piston("verify", bundle, "--json")
    assert found.status == 0
    assert json.loads(found.out)["passed"]
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    golden = json.loads((copy / "verify.json").read_text())
    golden["engines"]["ort-cpu"]["outputs"][1]["values"][0] += 10
    (copy / "verify.json").write_text(json.dumps(golden))
    manifest = Manifest.read(copy)
    dataclasses.replace(manifest, files=record_files(copy)).write(copy)
    refused = piston("verify", copy)
    assert refused.status == 1
    assert "ort-cpu does NOT answer as built: 1 texts differ" in refused.out
