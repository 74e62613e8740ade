import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from piston.core.errors import EngineError, MisuseError
from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams

VOCAB = 300
# 99.9% quantiles of chi-square: a right sampler exceeds them for one seed in a thousand, and the seeds here are
# fixed; a wrong temperature or an off-by-one in the inversion exceeds them a hundredfold.
CHI_SQUARE_999 = {2: 13.82, 7: 24.32}
NUM_DRAWS = 20_000

rows = arrays(np.float32, st.integers(1, 40), elements=st.floats(-50, 50, width=32))
histories = arrays(np.int64, st.integers(0, 30), elements=st.integers(0, 50))
fixed = settings(derandomize=True, deadline=None)

FILTERS = {
    "top_k": lambda logits: row.top_k(logits, 3),
    "top_p": lambda logits: row.top_p(logits, 0.6),
    "min_p": lambda logits: row.min_p(logits, 0.2),
    "typical_p": lambda logits: row.typical_p(logits, 0.6),
}
SHIFTS = {
    "logit_bias": lambda logits, _: row.logit_bias(logits, {0: 1.5}),
    "repetition_penalty": lambda logits, ids: row.repetition_penalty(logits, ids, 1.3),
    "frequency_penalty": lambda logits, ids: row.frequency_penalty(logits, ids, 0.4),
    "presence_penalty": lambda logits, ids: row.presence_penalty(logits, ids, 0.4),
    "no_repeat_ngram": lambda logits, ids: row.no_repeat_ngram(logits, ids, 2),
    "bad_words": lambda logits, ids: row.bad_words(logits, ids, [(0,), (1, 2)]),
    "min_tokens": lambda logits, ids: row.min_tokens(logits, ids.size, 5, [0]),
    "temperature": lambda logits, _: row.temperature(logits, 0.7),
}


def f32(*values):
    return np.array(values, np.float32)


def ids(*values):
    return np.array(values, np.int64)


def kept(logits):
    return set(np.flatnonzero(logits > -np.inf).tolist())


def random_row(seed, vocab=VOCAB, scale=3.0):
    return (np.random.default_rng(seed).standard_normal(vocab) * scale).astype(np.float32)


def chi_square(logits, draw):
    """Statistic of NUM_DRAWS draws against softmax(logits), and its degrees of freedom."""
    weight = np.exp(logits.astype(np.float64))
    expected = NUM_DRAWS * weight / weight.sum()
    rng = np.random.default_rng(2024)
    count = np.bincount([draw(rng) for _ in range(NUM_DRAWS)], minlength=logits.size)
    possible = expected > 0
    assert count[~possible].sum() == 0
    statistic = ((count - expected)[possible] ** 2 / expected[possible]).sum()
    return statistic, int(possible.sum()) - 1


def test_frequency_penalty_counts_every_occurrence():
    penalized = row.frequency_penalty(f32(1, 1, 1), ids(2, 0, 2), 0.5)
    np.testing.assert_array_equal(penalized, f32(0.5, 1, 0))


def test_presence_penalty_counts_once():
    penalized = row.presence_penalty(f32(1, 1, 1), ids(2, 0, 2), 0.5)
    np.testing.assert_array_equal(penalized, f32(0.5, 1, 0.5))


def test_logit_bias_for_a_token_the_model_lacks_is_refused():
    with pytest.raises(MisuseError, match="names token 3; the model's tokens are 0 to 2"):
        row.logit_bias(f32(1, 2, 3), {3: 1.0})


@pytest.mark.parametrize("name", ["repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram"])
def test_tokens_of_the_prompt_that_have_no_logit_are_passed_over(name):
    logits = f32(1, 2)
    np.testing.assert_array_equal(SHIFTS[name](logits, ids(9, 8, 9)), logits)


def test_top_p_keeps_lower_ids_among_equals():
    assert kept(row.top_p(f32(0, 0, 0, 0), 0.45)) == {0, 1}


def test_top_k_keeps_ties_with_the_last_kept():
    assert kept(row.top_k(f32(3, 1, 1, 0), 2)) == {0, 1, 2}


def test_a_tiny_top_p_leaves_the_likeliest():
    assert kept(row.top_p(random_row(5), 1e-30)) == {int(random_row(5).argmax())}


def test_a_tiny_top_p_leaves_one_of_many_equals():
    assert kept(row.top_p(np.zeros(1000, np.float32), 1e-30)) == {0}


def test_typical_p_may_drop_the_likeliest_token():
    # The entropy is 3.6 nats; the surprise of the likeliest is 1.2, that of each of the many 4.6.
    probability = np.concatenate([[0.3], np.full(70, 0.01)])
    assert 0 not in kept(row.typical_p(np.log(probability).astype(np.float32), 0.4))


def test_typical_p_passes_over_tokens_whose_probability_underflows():
    assert kept(row.typical_p(f32(0, -2000, 0), 0.9)) == {0, 2}


@pytest.mark.parametrize("ours", [row.top_p, row.typical_p])
def test_a_share_that_rounding_never_reaches_keeps_all_tokens_that_count(ours):
    for seed in range(20):  # for about half of these the float64 sum of all probabilities stays below this share
        assert len(kept(ours(random_row(seed, scale=1.0), 1 - 2**-53))) == VOCAB


@pytest.mark.parametrize("value", [1e-5, 1e-30, 5e-324])
def test_temperature_towards_zero_leaves_the_likeliest(value):
    logits = random_row(6)
    assert row.draw(row.temperature(logits, value), np.random.default_rng(0)) == logits.argmax()


@pytest.mark.parametrize("value", [1e9, 1e300])
def test_temperature_towards_infinity_makes_all_tokens_equal(value):
    np.testing.assert_allclose(row.temperature(random_row(6), value), 0, atol=1e-6)


def test_logits_at_the_edge_of_float32_survive_temperature():
    scaled = row.temperature(f32(3e38, -3e38, 3e38), 0.5)
    np.testing.assert_array_equal(scaled, f32(0, -np.inf, 0))


def test_warp_takes_the_filters_in_the_order_of_transformers():
    # Probabilities 0.40, 0.25, 0.20, 0.15. After top_k=3 they are 0.471, 0.294, 0.235, so top_p=0.75 keeps two; were
    # top_p first, it would keep three, and top_k all of them.
    logits = np.log(f32(0.40, 0.25, 0.20, 0.15))
    assert kept(row.warp(logits, SamplingParams(temperature=1, top_k=3, top_p=0.75))) == {0, 1}


def test_warp_filters_what_temperature_has_reshaped():
    logits = np.log(f32(0.5, 0.3, 0.2))
    assert kept(row.warp(logits, SamplingParams(temperature=0.25, top_p=0.8))) == {0}
    assert kept(row.warp(logits, SamplingParams(temperature=4, top_p=0.8))) == {0, 1, 2}


@pytest.mark.parametrize("option", [{"top_k": 2}, {"top_p": 0.6}, {"min_p": 0.5}, {"typical_p": 0.3}])
def test_warp_applies_every_filter(option):
    logits = random_row(8, vocab=50)
    assert len(kept(row.warp(logits, SamplingParams(temperature=1, **option)))) < 50


def test_warp_without_filters_keeps_every_token():
    assert len(kept(row.warp(random_row(8), SamplingParams(temperature=1, top_k=0)))) == VOCAB


def test_greedy_takes_the_lowest_of_equal_tokens_and_draws_nothing():
    assert row.pick(f32(1, 5, 2, 5), SamplingParams(), rng=None) == 1


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=1)])
@pytest.mark.parametrize(
    "logits", [f32(1, np.nan, 2), f32(np.nan, 9), f32(-np.inf, np.nan), f32(-np.inf, -np.inf), f32(0, np.inf)]
)
def test_logits_no_token_can_be_picked_from_are_an_error(logits, sampling):
    with pytest.raises(EngineError, match="no token can be picked"):
        row.pick(logits, sampling, np.random.default_rng(0))


def test_pick_spends_one_uniform_number_per_token():
    rng, other = np.random.default_rng(4), np.random.default_rng(4)
    for sampling in (SamplingParams(temperature=1), SamplingParams(temperature=0.3, top_k=5, top_p=0.5)):
        row.pick(random_row(1), sampling, rng)
        other.random()
    assert rng.bit_generator.state == other.bit_generator.state


class Uniform:
    """A generator whose next number is known."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value


@pytest.mark.parametrize(
    ("uniform", "token_id"),
    [(0.0, 1), (0.24, 1), (0.26, 2), (0.74, 2), (0.76, 4), (1 - 2**-53, 4)],
)
def test_draw_inverts_the_distribution_function(uniform, token_id):
    # Tokens 0 and 5 underflow to probability 0, token 3 is ruled out.
    logits = np.concatenate([f32(-2000), np.log(f32(0.25, 0.5)), f32(-np.inf), np.log(f32(0.25)), f32(-2000)])
    assert row.draw(logits, Uniform(uniform)) == token_id


def test_draw_does_not_overflow_on_huge_logits():
    assert row.draw(f32(3e38, -3e38, 1000), Uniform(0.5)) == 0


def test_draws_follow_the_distribution():
    logits = random_row(12, vocab=8, scale=1.0)
    statistic, freedom = chi_square(logits, lambda rng: row.draw(logits, rng))
    assert statistic < CHI_SQUARE_999[freedom]


def test_picks_follow_the_distribution_at_a_temperature():
    logits, sampling = random_row(13, vocab=8, scale=1.0), SamplingParams(temperature=0.6)
    statistic, freedom = chi_square(logits / np.float32(0.6), lambda rng: row.pick(logits, sampling, rng))
    assert statistic < CHI_SQUARE_999[freedom]


def test_picks_never_leave_the_nucleus_and_are_renormalised_in_it():
    logits = np.log(f32(0.1, 0.4, 0.05, 0.3, 0.15))
    sampling = SamplingParams(temperature=1, top_p=0.75)
    nucleus = np.where([False, True, False, True, True], logits, np.float32(-np.inf))
    statistic, freedom = chi_square(nucleus, lambda rng: row.pick(logits, sampling, rng))
    assert statistic < CHI_SQUARE_999[freedom]


def test_logprobs_are_those_of_softmax():
    logits = random_row(9)
    probability = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    logprob, top = row.logprobs(logits, 17, 4)
    assert logprob == pytest.approx(math.log(probability[17]))
    assert [token_id for token_id, _ in top] == np.argsort(-logits)[:4].tolist()
    assert [value for _, value in top] == pytest.approx(np.log(np.sort(probability)[::-1][:4]))


def test_top_logprobs_list_equals_by_id_and_never_more_than_asked():
    _, top = row.logprobs(f32(1, 2, 1, 2, 1), 0, 3)
    assert [token_id for token_id, _ in top] == [1, 3, 0]


def test_top_logprobs_leave_out_impossible_tokens():
    _, top = row.logprobs(f32(-np.inf, 0, -np.inf), 1, 3)
    assert top == ((1, 0.0),)


def test_no_top_logprobs_unless_asked():
    assert row.logprobs(f32(0, 0), 1, 0) == (pytest.approx(-math.log(2)), ())


def test_logprobs_of_huge_logits_do_not_overflow():
    assert row.logprobs(f32(3e38, -3e38), 0, 0)[0] == 0


@pytest.mark.parametrize("name", SHIFTS)
@fixed
@given(rows, histories)
def test_shifts_make_a_new_float32_row_and_leave_the_argument(name, logits, history):
    before, history_before = logits.copy(), history.copy()
    result = SHIFTS[name](logits, history)
    assert (result.dtype, result.shape) == (np.float32, logits.shape)
    assert not np.shares_memory(result, logits)
    np.testing.assert_array_equal(logits, before)
    np.testing.assert_array_equal(history, history_before)


@pytest.mark.parametrize("name", FILTERS)
@fixed
@given(rows)
def test_filters_keep_some_logits_unchanged_and_leave_the_argument(name, logits):
    before = logits.copy()
    result = FILTERS[name](logits)
    assert not np.shares_memory(result, logits)
    np.testing.assert_array_equal(logits, before)
    assert kept(result)
    np.testing.assert_array_equal(result, np.where(result > -np.inf, logits, np.float32(-np.inf)))


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
@fixed
@given(rows)
def test_the_likeliest_token_survives_every_filter_but_typical(name, logits):
    assert row.likeliest(logits) in kept(FILTERS[name](logits))


@fixed
@given(rows, st.floats(0.01, 0.99))
def test_top_p_keeps_enough_and_no_token_too_many(logits, p):
    probability = np.exp(logits.astype(np.float64) - logits.max())
    probability /= probability.sum()
    nucleus = probability[sorted(kept(row.top_p(logits, p)))]
    assert nucleus.sum() >= p - 1e-9
    assert nucleus.sum() - nucleus.min() < p + 1e-9


@fixed
@given(
    rows,
    st.builds(
        SamplingParams,
        temperature=st.floats(0.01, 10),
        top_k=st.integers(-1, 20),
        top_p=st.floats(0.05, 1),
        min_p=st.floats(0, 1),
        typical_p=st.floats(0.05, 1),
    ),
    st.integers(0, 2**32),
)
def test_pick_stays_within_what_warp_allows(logits, sampling, seed):
    assert row.pick(logits, sampling, np.random.default_rng(seed)) in kept(row.warp(logits, sampling))
