"""Perplexity of a real toy Llama, by the recipe of transformers' documentation (strided windows, labels of -100)."""

import math

import numpy as np
import pytest
from evaluated import corpus_of

from piston.evaluation.scoring import score
from piston.evaluation.summary import perplexity_of
from piston.evaluation.windows import Windowing
from piston.runtime.backends.ort_cpu import OrtEngine

torch = pytest.importorskip("torch")

IDS = np.random.default_rng(5).integers(131, size=150)


def strided_perplexity(model, ids, length, stride):
    total, count, reached = 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + length, len(ids))
        inputs = torch.tensor(np.array([ids[begin:end]]))
        labels = inputs.clone()
        labels[:, : -(end - reached)] = -100
        num_scored = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(inputs, labels=labels).loss) * num_scored
        count, reached = count + num_scored, end
        if end == len(ids):
            break
    return math.exp(total / count), count


@pytest.mark.parametrize(("length", "stride"), [(32, 16), (48, 17), (64, 63)])
def test_perplexity_is_that_of_transformers_with_the_same_windows(toy_llama, length, stride):
    engine = OrtEngine.open(toy_llama.path, toy_llama.spec, num_slots=1, capacity=length)
    scores = score(engine, None, corpus_of(IDS), Windowing(length=length, stride=stride))
    expected, count = strided_perplexity(toy_llama.make(), IDS, length, stride)
    found = np.concatenate(scores.nll)
    assert len(found) == count
    assert perplexity_of(found.mean()) == pytest.approx(expected, rel=2e-5)


def test_a_token_in_front_of_every_window_is_as_if_it_stood_in_the_text(toy_llama):
    engine = OrtEngine.open(toy_llama.path, toy_llama.spec, num_slots=1, capacity=32)
    scores = score(engine, None, corpus_of(IDS[:60], prefix=[1]), Windowing(length=32, stride=16))
    model, expected = toy_llama.make(), []
    for _, window in scores.windows:
        ids = [1, *(int(id_) for id_ in IDS[window.start : window.end])]
        with torch.no_grad():
            logs = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        expected += [-float(logs[token - window.start, IDS[token]]) for token in range(window.first, window.end)]
    np.testing.assert_allclose(np.concatenate(scores.nll), expected, atol=2e-4)
