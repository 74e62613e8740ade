"""Encoder tasks from a checkpoint to an answer, compared with transformers' pipelines."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from encoder_fixtures import MODELS
from transformers import AutoTokenizer, pipeline

from piston.calibration.calibrate import calibrate
from piston.calibration.check import CheckOptions
from piston.calibration.recipe import Recipe
from piston.core.bundle.manifest import Manifest, record_files
from piston.data.rows import RowOptions
from piston.engines import build
from piston.runtime import load

# Accents, an emoji with a modifier, Chinese, line ends of Windows, unknown characters alone.
TEXTS = ["hello world", "Héllo Wörld, paris!", "你好 paris 👍🏽 in", "in\r\nparis\tworld?", "ßßß", "a" * 15]


def pipe(toys, name, task):
    tokenizer = AutoTokenizer.from_pretrained(toys.checkpoint(name))
    return pipeline(task, model=toys.reference(name), tokenizer=tokenizer)


@pytest.mark.parametrize("name", ["single", "multi", "regression"])
def test_labels_and_scores_are_those_of_the_pipeline(encoder_toys, name):
    expected = [pipe(encoder_toys, name, "text-classification")(text, top_k=None) for text in TEXTS]
    with load(encoder_toys.bundle(name)) as model:
        found = model.classify(TEXTS)
    for wanted, scores in zip(expected, found, strict=True):
        assert [score.label for score in scores] == [item["label"] for item in wanted]
        np.testing.assert_allclose([score.score for score in scores], [item["score"] for item in wanted], atol=1e-5)


def test_a_pair_of_texts_is_read_together(encoder_toys):
    pairs = [("hello world", "paris"), ("in", "a b c")]
    classifier = pipe(encoder_toys, "single", "text-classification")
    expected = [classifier({"text": text, "text_pair": pair}, top_k=None) for text, pair in pairs]
    with load(encoder_toys.bundle("single")) as model:
        found = model.classify(pairs, top_k=1)
    for wanted, (best,) in zip(expected, found, strict=True):
        assert best.label == wanted[0]["label"]
        assert best.score == pytest.approx(wanted[0]["score"], abs=1e-5)


@pytest.mark.parametrize("aggregation", ["none", "simple", "first", "average", "max"])
def test_spans_are_those_of_the_pipeline(encoder_toys, aggregation):
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


def test_a_long_text_is_tagged_in_the_windows_of_the_pipeline(encoder_toys):
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
    model, best, no_answer = toys.reference("answerer"), (-1.0, 0, 0), 1.0
    for row in range(len(rows["input_ids"])):
        given = {name: torch.tensor([rows[name][row]]) for name in ("input_ids", "token_type_ids")}
        with torch.no_grad():
            output = model(**given)
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
def test_the_answer_is_the_best_span_of_all_windows(encoder_toys, repeats):
    question, context = "in paris?", "Hello wörld 你好 in paris, " * repeats
    (score, start, end), no_answer = expected_answer(encoder_toys, question, context, window=20, stride=5)
    with load(encoder_toys.bundle("answerer")) as model:
        found = model.answer(question, context, window=20, stride=5)
        empty = model.answer(question, context, window=20, stride=5, allow_no_answer=True)
    assert (found.start, found.end, found.text) == (start, end, context[start:end])
    np.testing.assert_allclose([found.score, found.no_answer_score], [score, no_answer], rtol=1e-3)
    assert empty.text == ("" if no_answer > score else found.text)


def test_documents_come_best_first_with_the_scores_of_the_cross_encoder(encoder_toys):
    query, documents = "paris?", ["hello world", "in paris", "你好", "a b c"]
    tokenizer = AutoTokenizer.from_pretrained(encoder_toys.checkpoint("reranker"))
    model, logits = encoder_toys.reference("reranker"), []
    for document in documents:
        with torch.no_grad():
            given = tokenizer(query, document, return_tensors="pt", return_token_type_ids=True)
            logits.append(model(**given).logits[0, 0])
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
def test_the_command_answers_for_people_and_as_json(piston, encoder_toys, name):
    words, fields = COMMANDS[name]
    shown = piston("run", encoder_toys.bundle(name), *words)
    assert (shown.status, shown.err) == (0, "")
    assert shown.out.strip()
    found = json.loads(piston("run", encoder_toys.bundle(name), *words, "--json").out)
    assert set(fields) <= set(found)


def test_the_command_pairs_texts(piston, refused, encoder_toys):
    bundle = encoder_toys.bundle("single")
    found = json.loads(piston("run", bundle, "--text", "hello", "--text-pair", "paris", "--json").out)
    with load(bundle) as model:
        (expected,) = model.classify([("hello", "paris")])
    assert found["results"][0][0] == {"label": expected[0].label, "score": pytest.approx(expected[0].score)}
    assert (
        "1 --text and 2 --text-pair" in refused("run", bundle, "--text", "a", "--text-pair", "b", "--text-pair", "c")[1]
    )


def test_a_command_for_another_task_says_which_the_bundle_has(refused, encoder_toys):
    status, message = refused("run", encoder_toys.bundle("single"), "--question", "who?", "--context", "x")
    assert status == 2
    assert "is for text-classification" in message


@pytest.mark.parametrize("name", MODELS)
def test_a_bundle_of_every_task_is_verified_and_a_damaged_answer_is_found(piston, encoder_toys, tmp_path, name):
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


WORDS = ["hello", "world", "in", "paris", "wo", "rld", "a", "b", "c", "?"]


def examples(name, path, model):
    """A labelled file for a toy: the float model's own answers, but for one in four that is wrong."""
    texts = [f"{first} {second}" for first in WORDS for second in WORDS[:4]]
    if name == "single":
        found = [scores[0].label for scores in model.classify(texts)]
        other = {"bad": "good", "fair": "bad", "good": "fair"}
        records = [
            {"text": text, "label": label if index % 4 else other[label]}
            for index, (text, label) in enumerate(zip(texts, found, strict=True))
        ]
    elif name == "multi":
        scores = model.scores(texts)
        records = [
            {"text": text, "labels": [label for label, score in zip(model.labels, row, strict=True) if score >= 0.5]}
            for text, row in zip(texts, scores.tolist(), strict=True)
        ]
    elif name == "regression":
        records = [
            {"text": text, "label": value} for text, (value,) in zip(texts, model.scores(texts).tolist(), strict=True)
        ]
    elif name == "tagger":
        tagged = model.tag(texts, aggregation="none", ignore_labels=())
        first = [{span.start: span.label for span in reversed(spans)} for spans in tagged]
        records = [
            {"tokens": text.split(), "tags": [labels[0], labels[text.index(" ") + 1]]}
            for text, labels in zip(texts, first, strict=True)
        ]
    elif name == "answerer":
        pairs = [("who?", text) for text in texts]
        records = [
            {"question": question, "context": context, "answers": [answer.text]}
            for (question, context), answer in zip(pairs, model.answer_all(pairs), strict=True)
        ]
    else:
        scores = model.pair_scores([(text[0], text) for text in texts]).tolist()
        records = [
            {"query": text[0], "document": text, "score": score} for text, score in zip(texts, scores, strict=True)
        ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


FIGURES = {  # of the float model on its own answers
    "single": {"accuracy": 0.75},
    "multi": {"accuracy": 1.0, "f1": 1.0},
    "regression": {"spearman": 1.0},
    "tagger": {"accuracy": 1.0, "f1": 1.0},
    "answerer": {"exact_match": 1.0, "f1": 1.0},
    "reranker": {"ndcg": 1.0, "spearman": 1.0},
}


@pytest.mark.parametrize("name", FIGURES)
def test_labelled_examples_are_evaluated_by_the_figures_of_the_task(piston, encoder_toys, tmp_path, name):
    bundle = encoder_toys.bundle(name)
    with load(bundle) as model:
        data = examples(name, tmp_path / "data.jsonl", model)
    page = tmp_path / "page.html"
    words = ("eval", bundle, "--data", data, "--reference", encoder_toys.model(name), "--json", "--quiet")
    result = piston(*words, "--html", page)
    assert result.status == 0
    assert all(figure in page.read_text() for figure in FIGURES[name])
    values = json.loads(result.out)["values"]
    for figure, value in FIGURES[name].items():
        assert values[figure] == pytest.approx(value, abs=1e-6)
        assert values[f"{figure}_change"] == pytest.approx(0, abs=1e-6)


def test_texts_without_labels_compare_two_models(piston, refused, encoder_toys, tmp_path):
    bundle, model = encoder_toys.bundle("single"), encoder_toys.model("single")
    texts = tmp_path / "texts.txt"
    texts.write_text("hello world\nin paris")
    words = ("eval", bundle, "--data", texts, "--quiet")
    result = piston(*words, "--reference", model, "--json", "--require", "agreement>=99%", "--require", "kl<=0.001")
    assert result.status == 0
    assert json.loads(result.out)["values"]["agreement"] == 1.0
    assert "give labelled examples" in refused(*words)[1]
    assert "is measured on labelled examples" in refused(*words, "--reference", model, "--require", "accuracy>=1%")[1]
    assert "--window is for language models" in refused(*words, "--reference", model, "--window", "64")[1]


@pytest.mark.parametrize("is_labelled", [False, True])
def test_a_text_that_only_one_of_two_models_reads_whole_is_cut_for_both(
    piston, toys, encoder_toys, tmp_path, is_labelled
):
    model, data = encoder_toys.model("tagger"), tmp_path / "data.jsonl"
    record = (
        {"tokens": ["hello", "world", "in", "paris"], "tags": ["O"] * 4} if is_labelled else {"text": "hello world"}
    )
    data.write_text(json.dumps(record))  # 12 tokens; hello alone has five
    result = piston("eval", toys.built(model, max_length=6), "--data", data, "--reference", model, "--json")
    assert result.status == 0
    assert "Both models are given the first 6 tokens of a text" in result.err
    values = json.loads(result.out)["values"]
    assert values.get("distance", 0) < 1e-4
    assert values.get("accuracy") == values.get("accuracy_reference")


def test_a_gate_on_the_change_of_a_figure_judges_the_quantized_model(refused, encoder_toys, tmp_path):
    with load(encoder_toys.bundle("single")) as model:
        data = examples("single", tmp_path / "data.jsonl", model)
    result = calibrate(
        encoder_toys.model("single"),
        tmp_path / "w8a8",
        Recipe(scheme="w8a8"),
        [data],
        rows=RowOptions(num_rows=4, seq_len=8, seed=1),
        checked=CheckOptions(bounds=("accuracy>=-30%",), labelled=data),
    )
    assert result.check.comparison.values["accuracy_reference"] == 0.75
    assert "on data.jsonl accuracy" in result.check.summaries[0]
    words = ("calibrate", encoder_toys.model("single"), "-o", tmp_path / "x", "--scheme", "w8", "--quiet")
    assert "give them as --labelled FILE" in refused(*words, "--require", "accuracy>=-1%")[1]
    status, message = refused(*words, "--require", "accuracy>=90%", "--labelled", data)
    assert status == 1
    assert "accuracy>=90%: the accuracy is 75" in message


@pytest.mark.parametrize("scheme", ["w8", "w4"])  # test_encoder_matrix.py has w8a8
def test_every_scheme_is_checked_and_built(encoder_toys, tmp_path, scheme):
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{first} {second} in paris" for first in WORDS for second in WORDS))
    recipe = Recipe(scheme=scheme, block=32 if scheme == "w4" else 0)
    options = CheckOptions(bounds=("distance<=100%",), data=texts)
    calibrate(
        encoder_toys.model("tagger"),
        tmp_path / "out",
        recipe,
        rows=RowOptions(num_rows=4, seq_len=8, seed=1),
        checked=options,
    )
    build(tmp_path / "out", tmp_path / "bundle")
    with load(tmp_path / "bundle") as model:
        (spans,) = model.tag(["hello paris"], aggregation="none", ignore_labels=())
    assert len(spans) == len("hello") + 2  # par, ##is
