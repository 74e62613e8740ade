"""Every task of encoders from its checkpoint to an answer: in Python, by command and over HTTP, in float and INT8.

On ONNX Runtime and on Piston's own kernels; and as a plan that the real compiler of TensorRT-RTX builds.
docs/tasks.md has the table of these cases (tests/test_task_targets.py).
"""

import numpy as np
import pytest
import torch
from encoders import mean_of_tokens
from own_kernels import need_kernels
from task_answers import by_command, check_plans, opened, over_http
from task_matrix import CONTEXT, CPU_TARGETS, QUESTION, ROWS, SCHEMES, TEXTS
from transformers import AutoTokenizer

from piston.runtime import kernels, load
from piston.runtime.ragged import batches
from piston.runtime.tasks.question_answering import ANSWER_LEN

# Of the length of all numbers: rounding of float32, and what `piston calibrate` allows w8a8 by default.
MOST_MOVED = {"fp": 2e-5, "w8a8": 0.25}


def reference_logits(toys, name, *texts):
    """What transformers gives one row, and the row."""
    row = AutoTokenizer.from_pretrained(toys.checkpoint(name))(*texts, return_tensors="pt")
    with torch.no_grad():
        return toys.reference(name)(**row), row


def of_transformers(toys, name):
    """The numbers of an answer, flat, computed by transformers' module of each text alone."""
    if name == "embedder":
        tokenizer, module = AutoTokenizer.from_pretrained(toys.checkpoint(name)), toys.reference(name)
        return [mean_of_tokens(module, tokenizer(text)["input_ids"]).numpy() for text in TEXTS]
    if name == "reranker":
        return [reference_logits(toys, name, QUESTION, text)[0].logits.sigmoid().numpy() for text in TEXTS]
    if name == "tagger":  # the best probability of each token but [CLS] and [SEP]
        return [reference_logits(toys, name, text)[0].logits[0, 1:-1].softmax(-1).amax(-1).numpy() for text in TEXTS]
    if name == "answerer":
        found, row = reference_logits(toys, name, QUESTION, CONTEXT)
        counted = [0, *(place for place, side in enumerate(row.sequence_ids(0)) if side == 1)]
        starts, ends = (logits[0, counted].softmax(-1).tolist() for logits in (found.start_logits, found.end_logits))
        spans = [
            starts[first] * ends[last]
            for first in range(1, len(counted))
            for last in range(first, min(first + ANSWER_LEN, len(counted)))
        ]
        return [np.array([max(spans), starts[0] * ends[0]])]
    activation = {"single": lambda x: x.softmax(-1), "multi": torch.sigmoid, "regression": lambda x: x}[name]
    return [activation(reference_logits(toys, name, text)[0].logits[0]).numpy() for text in TEXTS]


def of_python(model, name):
    """The same numbers of a loaded bundle."""
    if name == "embedder":
        return model.embed(TEXTS)
    if name == "reranker":
        return by_index(model.rerank(QUESTION, TEXTS), lambda item: (item.index, item.score))
    if name == "tagger":
        return [[span.score for span in spans] for spans in model.tag(TEXTS, aggregation="none", ignore_labels=())]
    if name == "answerer":
        answer = model.answer(QUESTION, CONTEXT)
        return [[answer.score, answer.no_answer_score]]
    found = model.classify(TEXTS)
    return [[{item.label: item.score for item in scores}[label] for label in model.labels] for scores in found]


def of_command(found, name, labels):
    """The same numbers of what `piston run --json` printed."""
    if name == "embedder":
        return found["embeddings"]
    if name == "answerer":
        return [[found["score"], found["no_answer_score"]]]
    results = found["results"]
    if name == "reranker":
        return by_index(results, lambda item: (item["index"], item["score"]))
    if name == "tagger":
        return [[span["score"] for span in spans] for spans in results]
    return [[{item["label"]: item["score"] for item in scores}[label] for label in labels] for scores in results]


def of_http(found, name, labels):
    """The same numbers of the body of an answer."""
    if name == "embedder":
        return [item["embedding"] for item in found["data"]]
    if name == "answerer":
        return [[found["score"], found["no_answer_score"]]]
    if name == "reranker":
        return by_index(found["results"], lambda item: (item["index"], item["relevance_score"]))
    if name == "tagger":
        return [[span["score"] for span in item["spans"]] for item in found["data"]]
    if name == "multi":
        return [[item["category_scores"][label] for label in labels] for item in found["results"]]
    return [item["probs"] for item in found["data"]]


def by_index(items, read):
    return [[score] for _, score in sorted(map(read, items))]


def flat(numbers):
    return np.concatenate([np.asarray(part, np.float64).reshape(-1) for part in numbers])


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ROWS)
def test_python_command_and_http_give_the_answers_of_transformers(real_piston, encoder_toys, name, scheme, target):
    row = ROWS[name]
    with opened(encoder_toys, row, name, scheme, target) as (bundle, model):
        found, labels = flat(of_python(model, name)), getattr(model, "labels", ())
        (answer,) = over_http(model, row)
    expected = flat(of_transformers(encoder_toys, name))
    assert np.linalg.norm(found - expected) <= MOST_MOVED[scheme] * np.linalg.norm(expected)
    np.testing.assert_allclose(flat(of_http(answer, name, labels)), found, rtol=1e-5, atol=1e-6)
    (printed,) = by_command(real_piston, bundle, row, target)
    np.testing.assert_allclose(flat(of_command(printed, name, labels)), found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ROWS)
def test_padding_changes_no_output_and_on_own_kernels_no_bit(encoder_toys, name, scheme, target):
    if target == kernels.TARGET:
        need_kernels()
    with load(encoder_toys.everywhere(name, scheme), target=target) as model:
        rows = [model.row(text) for text in TEXTS]
        together, alone = model.run(rows), [model.run([row])[0] for row in rows]
    sizes = [len(row) for row in rows]
    assert list(batches(sizes, tokens=model.max_batch * model.max_length)) == [np.argsort(sizes).tolist()]
    assert len(set(sizes)) > 1  # one batch, with padding
    for found, expected in zip(together, alone, strict=True):
        if target == kernels.TARGET:
            np.testing.assert_array_equal(found, expected)
        else:
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", [name for name in ROWS if name not in {"multi", "regression"}])  # graphs of one form
def test_the_compiler_of_tensorrt_rtx_builds_its_plan(toys, encoder_toys, name, scheme):
    check_plans(toys, encoder_toys.model(name, scheme), scheme)
