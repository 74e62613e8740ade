import math

import numpy as np
import pytest
from evaluated import corpus_of, other_script
from toy_model import history_script

from piston.core.errors import EngineError, MisuseError
from piston.evaluation.scoring import score
from piston.evaluation.windows import Windowing
from piston.runtime.backends.scripted import ScriptedEngine

VOCAB = 40
IDS = np.random.default_rng(4).integers(VOCAB, size=75)
WINDOWING = Windowing(length=16, stride=6)


def engine(script, vocab_size=VOCAB, capacity=16, num_slots=1):
    return ScriptedEngine(script, vocab_size=vocab_size, capacity=capacity, num_slots=num_slots)


def uniform(history):
    return np.zeros(VOCAB, np.float32)


def nll_by_hand(script, ids, windowing, prefix=()):
    """Each token under the logits of the very context that the rule gives it."""
    found, size = [], windowing.length - len(prefix)
    for token in range(0 if prefix else 1, len(ids)):
        start = 0 if token < size else -(-(token + 1 - size) // windowing.stride) * windowing.stride
        logits = script((*prefix, *(int(id_) for id_ in ids[start:token]))).astype(float)
        found.append(math.log(np.exp(logits).sum()) - logits[ids[token]])
    return found


def test_a_uniform_distribution_has_the_vocabulary_as_perplexity():
    scores = score(engine(uniform), None, corpus_of(IDS), WINDOWING)
    assert math.exp(np.concatenate(scores.nll).mean()) == pytest.approx(VOCAB, rel=1e-14)


def test_a_sure_and_right_model_has_perplexity_one():
    ids = [int(id_) % 7 for id_ in range(60)]

    def script(history):
        logits = np.full(VOCAB, -100, np.float32)
        logits[(history[-1] + 1) % 7] = 0
        return logits

    assert np.concatenate(score(engine(script), None, corpus_of(ids), WINDOWING).nll).max() < 1e-30


@pytest.mark.parametrize("prefix", [(), (1,), (1, 2)])
def test_each_token_is_scored_in_the_context_the_rule_gives_it(prefix):
    scores = score(engine(history_script(VOCAB)), None, corpus_of(IDS, prefix=prefix), WINDOWING)
    expected = nll_by_hand(history_script(VOCAB), IDS, WINDOWING, prefix)
    np.testing.assert_allclose(np.concatenate(scores.nll), expected, rtol=1e-12)


@pytest.mark.parametrize("prefix", [(), (1,)])
def test_contexts_count_the_positions_before_each_token(prefix):
    seen = []

    def script(history):
        seen.append(len(history))
        return np.zeros(VOCAB, np.float32)

    scores = score(engine(script), None, corpus_of(IDS, prefix=prefix), WINDOWING)
    windows = [seen[index : index + 15] for index in range(0, len(seen), 15)]
    for contexts, lengths in zip(scores.contexts, windows, strict=True):
        assert list(contexts) == lengths[-len(contexts) :]


def test_the_prefix_is_read_at_the_start_of_every_window():
    used = engine(uniform)
    score(used, None, corpus_of(IDS, prefix=[1]), WINDOWING)
    assert all(ids[0] == 1 for _, (_, ids) in used.calls)
    assert len(used.calls) > 3


def test_no_window_crosses_documents():
    apart = score(engine(history_script(VOCAB)), None, corpus_of(IDS[:30], IDS[30:]), WINDOWING)
    expected = [nll_by_hand(history_script(VOCAB), ids, WINDOWING) for ids in (IDS[:30], IDS[30:])]
    np.testing.assert_allclose(np.concatenate(apart.nll), np.concatenate(expected), rtol=1e-12)
    assert sorted({document for document, _ in apart.windows}) == [0, 1]


def test_logits_are_held_a_bounded_number_of_rows_at_a_time(monkeypatch):
    whole = score(engine(history_script(VOCAB)), engine(other_script(vocab_size=VOCAB)), corpus_of(IDS), WINDOWING)
    asked = []

    class Watched(ScriptedEngine):
        def prefill(self, slot, token_ids, num_logits=1):
            asked.append(num_logits)
            return super().prefill(slot, token_ids, num_logits)

    monkeypatch.setattr("piston.evaluation.scoring._LOGITS", 4 * VOCAB)
    watched = Watched(history_script(VOCAB), vocab_size=VOCAB, capacity=16)
    pieces = score(watched, engine(other_script(vocab_size=VOCAB)), corpus_of(IDS), WINDOWING)
    assert max(asked) == 4
    for left, right in zip(whole.comparisons, pieces.comparisons, strict=True):
        for field in range(len(left)):
            np.testing.assert_array_equal(left[field], right[field])


def test_two_models_are_compared_on_their_own_logits_for_the_same_context():
    first, second = history_script(VOCAB), other_script(vocab_size=VOCAB)
    scores = score(engine(second), engine(first), corpus_of(IDS[:16]), WINDOWING)
    histories = [tuple(int(id_) for id_ in IDS[:end]) for end in range(1, 16)]
    expected = []
    for history in histories:
        p, q = (np.exp(script(history).astype(float)) for script in (first, second))
        p, q = p / p.sum(), q / q.sum()
        expected.append(float((p * np.log(p / q)).sum()))
    np.testing.assert_allclose(scores.comparisons[0].kl, expected, rtol=1e-10)
    assert list(scores.comparisons[0].is_same_top) == [
        first(history).argmax() == second(history).argmax() for history in histories
    ]


def test_a_model_compared_with_itself_agrees_exactly():
    scores = score(engine(history_script(VOCAB)), engine(history_script(VOCAB)), corpus_of(IDS), WINDOWING)
    assert all((item.kl == 0).all() and item.is_same_top.all() for item in scores.comparisons)


def test_slots_are_given_back_even_after_a_failure():
    broken = engine(lambda history: np.full(VOCAB, np.nan))
    other = engine(uniform)
    with pytest.raises(EngineError):
        score(broken, other, corpus_of(IDS), WINDOWING)
    assert (broken.cache.num_free, other.cache.num_free) == (1, 1)


def test_a_window_beyond_the_capacity_is_misuse_with_both_numbers():
    with pytest.raises(MisuseError, match="16 positions, but the engine holds 15"):
        score(engine(uniform, capacity=15), None, corpus_of(IDS), WINDOWING)


def test_vocabularies_of_two_sizes_are_misuse_with_both_numbers():
    with pytest.raises(MisuseError, match="40 logits a token and the reference 41"):
        score(engine(uniform), engine(uniform, vocab_size=41), corpus_of(IDS), WINDOWING)


def test_progress_is_told_once_a_window():
    told = []
    scores = score(engine(uniform), None, corpus_of(IDS), WINDOWING, lambda done, total: told.append((done, total)))
    assert told == [(index, len(scores.windows)) for index in range(len(scores.windows))]
