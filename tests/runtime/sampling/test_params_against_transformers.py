"""The same options give the same tokens and distributions here as in transformers."""

import warnings

import numpy as np
import pytest

from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

VOCAB = 300
EOS = 2
PROMPT = [5, 9, 11, 5, 9]
SHIFTS = {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
BIAS = {7: 1.5, 20: -2.0}
BAD_WORDS = [[9, 11], [30]]


def ids(*values):
    return np.array(values, np.int64)


def kept(logits):
    return set(np.flatnonzero(logits > -np.inf).tolist())


def random_row(seed, vocab=VOCAB, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


@pytest.fixture(scope="module")
def oracle():
    """`oracle(name, *args)(ids, logits)` runs the class of that name in transformers' logits_process on one row."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        processors = pytest.importorskip("transformers.generation.logits_process")

    def make(name, *args, **kwargs):
        processor = getattr(processors, name)(*args, **kwargs)
        return lambda history, logits: processor(
            torch.from_numpy(history)[None], torch.from_numpy(logits.copy())[None]
        )[0].numpy()

    return make


def assert_same(ours, theirs):
    assert ours.dtype == np.float32
    assert kept(ours) == kept(theirs)
    np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("scale", [0.1, 3.0, 12.0])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "name", "value"),
    [
        *((row.top_k, "TopKLogitsWarper", k) for k in (1, 5, 50, VOCAB, VOCAB + 9)),
        *((row.top_p, "TopPLogitsWarper", p) for p in (0.001, 0.3, 0.9, 0.999)),
        *((row.min_p, "MinPLogitsWarper", p) for p in (0.001, 0.1, 0.7, 1.0)),
        *((row.typical_p, "TypicalLogitsWarper", p) for p in (0.01, 0.2, 0.6, 0.95)),
    ],
)
def test_filters_keep_what_transformers_keeps(oracle, ours, name, value, seed, scale):
    logits = random_row(seed, scale=scale)
    assert_same(ours(logits, value), oracle(name, value)(ids(), logits))


@pytest.mark.parametrize(
    ("ours", "name", "value"),
    [
        (row.top_p, "TopPLogitsWarper", 0.8),
        (row.min_p, "MinPLogitsWarper", 0.1),
        (row.typical_p, "TypicalLogitsWarper", 0.5),
        (row.top_k, "TopKLogitsWarper", 30),
    ],
)
def test_filters_agree_with_transformers_on_what_another_filter_left(oracle, ours, name, value):
    logits = row.top_k(random_row(7), 20)
    assert_same(ours(logits, value), oracle(name, value)(ids(), logits))


@pytest.mark.parametrize("value", [0.05, 0.7, 1.9])
def test_temperature_is_transformers_up_to_the_constant_softmax_ignores(oracle, value):
    logits = random_row(3)
    theirs = oracle("TemperatureLogitsWarper", value)(ids(), logits)
    ours = row.temperature(logits, value)
    assert ours.max() == 0
    np.testing.assert_allclose(ours, theirs - theirs.max(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("penalty", [0.5, 1.3, 4.0])
def test_repetition_penalty_is_that_of_transformers(oracle, penalty, seed):
    history = np.random.default_rng(seed).integers(0, VOCAB, 80)
    logits = random_row(seed)
    theirs = oracle("RepetitionPenaltyLogitsProcessor", penalty)(history, logits)
    assert_same(row.repetition_penalty(logits, history, penalty), theirs)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_no_repeat_ngram_forbids_what_transformers_forbids(oracle, size, seed):
    history = np.random.default_rng(seed).integers(0, 3, 60)
    logits = random_row(seed, vocab=4)
    ours = row.no_repeat_ngram(logits, history, size)
    assert_same(ours, oracle("NoRepeatNGramLogitsProcessor", size)(history, logits))
    assert len(kept(ours)) < 4


@pytest.mark.parametrize("length", range(4))
def test_no_repeat_ngram_agrees_with_transformers_on_short_histories(oracle, length):
    history, logits = np.zeros(length, np.int64), random_row(0)
    theirs = oracle("NoRepeatNGramLogitsProcessor", 3)(history, logits)
    assert_same(row.no_repeat_ngram(logits, history, 3), theirs)


@pytest.mark.parametrize("history", [(), (5,), (1, 2), (9, 1, 2), (2, 1), (1, 2, 3)])
def test_bad_words_forbids_what_transformers_forbids(oracle, history):
    sequences = [[7], [1, 2, 3], [2, 4], [1, 2, 3, 5]]
    logits = random_row(1)
    theirs = oracle("NoBadWordsLogitsProcessor", sequences)(ids(*history), logits)
    assert_same(row.bad_words(logits, ids(*history), sequences), theirs)


def test_logit_bias_is_transformers_bias_of_single_tokens(oracle):
    logits, bias = random_row(2), {4: 3.5, 9: -100.0, 299: 0.25}
    theirs = oracle("SequenceBiasLogitsProcessor", {(token_id,): value for token_id, value in bias.items()})
    assert_same(row.logit_bias(logits, bias), theirs(ids(1), logits))


@pytest.mark.parametrize("output_len", [0, 3, 4, 5])
def test_min_tokens_forbids_the_ends_as_long_as_transformers_does(oracle, output_len):
    logits, prompt_len = random_row(2), 6
    history = np.zeros(prompt_len + output_len, np.int64)
    theirs = oracle("MinNewTokensLengthLogitsProcessor", prompt_len, 4, [0, 17])(history, logits)
    assert_same(row.min_tokens(logits, output_len, 4, [0, 17]), theirs)


@pytest.fixture(scope="module")
def generate():
    """`generate(**options)`: the new tokens, raw logits and processed scores of a tiny random Llama in transformers."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch = pytest.importorskip("torch")
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        size = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
        config = transformers.LlamaConfig(vocab_size=VOCAB, initializer_range=1.0, **size)
        model = transformers.LlamaForCausalLM(config).eval()

    def call(**options):
        fixed = {"output_logits": True, "output_scores": True, "return_dict_in_generate": True, "pad_token_id": 0}
        torch.manual_seed(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prompt = torch.tensor([PROMPT])
            answer = model.generate(prompt, attention_mask=torch.ones_like(prompt), **options, **fixed)
        steps = [step[0].numpy() for step in answer.logits], [step[0].numpy() for step in answer.scores]
        return answer.sequences[0, len(PROMPT) :].tolist(), *steps

    return call


def elsewhere(bias):
    return {(token_id,): value for token_id, value in bias.items()}


def test_greedy_rows_are_those_of_transformers_generate(generate):
    common = {"max_new_tokens": 24, "min_new_tokens": 6, **SHIFTS}
    tokens, logits, _ = generate(
        do_sample=False, sequence_bias=elsewhere(BIAS), bad_words_ids=BAD_WORDS, eos_token_id=[EOS, 40], **common
    )
    sampling = SamplingParams.from_mapping({"logit_bias": BIAS, "bad_words": ["a", "b"], **common})
    sampler = RowSampler(sampling, PROMPT, eos_token_ids=[EOS, 40], bad_words_ids=BAD_WORDS)
    assert [sampler.pick(step).token_id for step in logits] == tokens
    assert sampler.finish_reason
    assert tokens != [int(step.argmax()) for step in logits]


def test_greedy_rows_under_a_generation_configs_lists_of_ids_are_those_of_transformers_generate(generate):
    plain, _, _ = generate(do_sample=False, max_new_tokens=24, eos_token_id=EOS)
    lists = {
        "begin_suppress_tokens": [plain[0]],
        "suppress_tokens": [plain[1], plain[3]],
        "bad_words_ids": [[EOS], [plain[0]], [plain[5], plain[6]]],
    }
    tokens, logits, _ = generate(do_sample=False, max_new_tokens=24, eos_token_id=EOS, **lists)
    sampler = RowSampler(SamplingParams.from_mapping({"max_new_tokens": 24, **lists}), PROMPT, eos_token_ids=[EOS])
    assert [sampler.pick(step).token_id for step in logits] == tokens
    assert tokens[:2] != plain[:2]


def test_a_bad_word_of_one_end_token_does_not_forbid_the_end_as_in_transformers():
    logits = np.zeros(VOCAB, np.float32)
    logits[EOS] = 9
    sampler = RowSampler(SamplingParams(bad_words_ids=((EOS,), (3,))), PROMPT, eos_token_ids=[EOS])
    assert sampler.pick(logits).token_id == EOS


def test_tokens_suppressed_at_the_beginning_may_come_later():
    logits = np.zeros(VOCAB, np.float32)
    logits[7], logits[8] = 9, 8
    sampler = RowSampler(SamplingParams(begin_suppress_tokens=(7,)), PROMPT)
    assert sampler.needs_logits
    assert [sampler.pick(logits).token_id for _ in range(2)] == [8, 7]
    assert not sampler.needs_logits


def test_sampled_rows_draw_from_the_distribution_transformers_draws_from(generate):
    warps = {"temperature": 1.7, "top_k": 20, "top_p": 0.9, "min_p": 0.02, "typical_p": 0.95}
    common = {"max_new_tokens": 24, "min_new_tokens": 24, **SHIFTS, **warps}
    tokens, logits, scores = generate(
        do_sample=True, sequence_bias=elsewhere(BIAS), bad_words_ids=BAD_WORDS, eos_token_id=EOS, **common
    )
    sampling = SamplingParams.from_mapping({"logit_bias": BIAS, "bad_words": ["a", "b"], **common})
    sampler = RowSampler(sampling, PROMPT, eos_token_ids=[EOS], bad_words_ids=BAD_WORDS)
    for token_id, raw, score in zip(tokens, logits, scores, strict=True):
        ours = row.warp(sampler._adjust(raw), sampling)
        np.testing.assert_allclose(ours, score - score.max() + ours.max(), atol=1e-4)
        sampler._record(token_id)
