import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piston.core.errors import EngineError, MisuseError
from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint, Pick, RowSampler

VOCAB = 64
EOS, STOP = 2, 3


def f32(*values):
    return np.array(values, np.float32)


def favouring(*token_ids, vocab=VOCAB):
    """Logits by which greedy decoding prefers these tokens, in this order."""
    logits = np.zeros(vocab, np.float32)
    logits[list(token_ids)] = 10 - np.arange(len(token_ids))
    return logits


def scripted(seed, num_steps):
    return (np.random.default_rng(seed).standard_normal((num_steps, VOCAB)) * 2).astype(np.float32)


def run(sampling, logits, **kwargs):
    sampler = RowSampler(sampling, [1], **kwargs)
    return [sampler.pick(step).token_id for step in logits]


def test_a_row_that_goes_on_has_no_finish_reason():
    sampler = RowSampler(SamplingParams(max_tokens=2), [1], eos_token_ids=[EOS])
    assert sampler.finish_reason is None
    sampler.pick(favouring(5))
    assert (sampler.finish_reason, sampler.stopped_by) == (None, None)


def test_eos_stops_the_row():
    sampler = RowSampler(SamplingParams(), [1], eos_token_ids=[EOS])
    sampler.pick(favouring(EOS))
    assert (sampler.finish_reason, sampler.stopped_by, sampler.output_ids) == ("stop", EOS, (EOS,))


def test_a_stop_token_stops_the_row():
    sampler = RowSampler(SamplingParams(stop_token_ids=(STOP,)), [1], eos_token_ids=[EOS])
    sampler.pick(favouring(STOP))
    assert (sampler.finish_reason, sampler.stopped_by) == ("stop", STOP)


def test_ignore_eos_goes_on_after_eos_but_not_after_a_stop_token():
    sampler = RowSampler(SamplingParams(ignore_eos=True, stop_token_ids=(STOP,)), [1], eos_token_ids=[EOS])
    sampler.pick(favouring(EOS))
    assert sampler.finish_reason is None
    sampler.pick(favouring(STOP))
    assert sampler.stopped_by == STOP


def test_max_tokens_ends_the_row_by_length():
    sampler = RowSampler(SamplingParams(max_tokens=2), [1])
    sampler.pick(favouring(5))
    sampler.pick(favouring(6))
    assert (sampler.finish_reason, sampler.stopped_by, sampler.output_ids) == ("length", None, (5, 6))


def test_eos_as_the_last_allowed_token_counts_as_stop():
    sampler = RowSampler(SamplingParams(max_tokens=1), [1], eos_token_ids=[EOS])
    sampler.pick(favouring(EOS))
    assert sampler.finish_reason == "stop"


def test_end_tokens_in_the_prompt_do_not_end_the_row():
    assert RowSampler(SamplingParams(), [EOS], eos_token_ids=[EOS]).finish_reason is None


def test_picking_for_a_finished_row_is_refused():
    sampler = RowSampler(SamplingParams(max_tokens=1), [1])
    sampler.pick(favouring(5))
    with pytest.raises(MisuseError, match=r"finished \(length\)"):
        sampler.pick(favouring(5))
    assert sampler.output_ids == (5,)


def test_min_tokens_holds_back_eos_and_stop_tokens_until_reached():
    sampling = SamplingParams(min_tokens=2, stop_token_ids=(STOP,))
    assert run(sampling, [favouring(EOS, STOP, 7)] * 3, eos_token_ids=[EOS]) == [7, 7, EOS]


def test_min_tokens_lets_an_ignored_eos_through():
    assert run(SamplingParams(min_tokens=2, ignore_eos=True), [favouring(EOS, 7)], eos_token_ids=[EOS]) == [EOS]


def test_repetition_penalty_sees_the_prompt():
    sampler = RowSampler(SamplingParams(repetition_penalty=1.5), [5])
    assert sampler.pick(favouring(5, 6)).token_id == 6


@pytest.mark.parametrize("option", ["presence_penalty", "frequency_penalty"])
def test_openai_penalties_see_the_output_and_not_the_prompt(option):
    sampler = RowSampler(SamplingParams(**{option: 1.5}), [5])
    assert [sampler.pick(favouring(5, 6)).token_id for _ in range(2)] == [5, 6]


def test_frequency_penalty_grows_where_presence_penalty_does_not():
    logits = [favouring(5) * np.float32(0.3)] * 3  # leads by 3
    assert run(SamplingParams(frequency_penalty=2), logits) == [5, 5, 0]
    assert run(SamplingParams(presence_penalty=2), logits) == [5, 5, 5]


def test_no_repeat_ngram_sees_prompt_and_output():
    sampler = RowSampler(SamplingParams(no_repeat_ngram_size=2), [5, 6, 5])
    assert [sampler.pick(favouring(6, 5)).token_id for _ in range(3)] == [5, 0, 6]


def test_bad_words_are_never_completed():
    sampler = RowSampler(SamplingParams(bad_words=("rude",)), [1], bad_words_ids=[[5, 6]])
    assert [sampler.pick(favouring(token_id, 9)).token_id for token_id in (6, 5, 6)] == [6, 5, 9]


def test_bad_words_without_their_ids_are_refused_rather_than_ignored():
    with pytest.raises(MisuseError, match="'rude'"):
        RowSampler(SamplingParams(bad_words="rude"), [1])


def test_a_bad_word_without_tokens_is_refused():
    with pytest.raises(MisuseError, match="must come with its token ids"):
        RowSampler(SamplingParams(bad_words="rude"), [1], bad_words_ids=[[]])


def test_logit_bias_moves_the_choice():
    assert run(SamplingParams(logit_bias={9: 100}), [favouring(5)]) == [9]


def test_options_that_leave_no_token_are_told_from_a_broken_engine():
    sampling = SamplingParams(no_repeat_ngram_size=1)
    with pytest.raises(MisuseError, match="After 0 tokens the options leave none to pick"):
        RowSampler(sampling, [0, 1]).pick(f32(1, 2))
    with pytest.raises(EngineError):
        RowSampler(sampling, [0, 1]).pick(f32(np.nan, 2))


def test_an_absurd_penalty_is_reported_and_not_picked_from():
    sampler = RowSampler(SamplingParams(repetition_penalty=1e-300), [0])
    with pytest.raises(MisuseError, match="highest logit is inf"):
        sampler.pick(f32(1, 2))


def test_a_failed_pick_records_nothing():
    sampler = RowSampler(SamplingParams(), [1])
    with pytest.raises(EngineError):
        sampler.pick(f32(np.nan))
    assert sampler.output_ids == ()


def test_options_apply_when_sampling_as_well():
    sampling = SamplingParams(temperature=1, seed=0, logit_bias={9: 100})
    assert run(sampling, [favouring(5)] * 5) == [9] * 5


WARM = {"temperature": 1.0, "max_tokens": 32}


def test_the_same_seed_gives_the_same_tokens():
    logits = scripted(0, 32)
    assert run(SamplingParams(seed=5, **WARM), logits) == run(SamplingParams(seed=5, **WARM), logits)


def test_another_seed_gives_other_tokens():
    logits = scripted(0, 32)
    assert run(SamplingParams(seed=5, **WARM), logits) != run(SamplingParams(seed=6, **WARM), logits)


def test_another_index_gives_other_tokens():
    logits = scripted(0, 32)
    sampling = SamplingParams(seed=5, **WARM)
    streams = {tuple(run(sampling, logits, index=index)) for index in range(4)}
    assert len(streams) == 4


def test_index_and_seed_do_not_add_up_to_the_same_stream():
    logits = scripted(0, 32)
    assert run(SamplingParams(seed=5, **WARM), logits, index=1) != run(SamplingParams(seed=6, **WARM), logits, index=0)


def test_rows_stepped_together_get_the_tokens_they_get_alone():
    logits = scripted(1, 32)
    sampling = SamplingParams(seed=5, **WARM)
    together = [RowSampler(sampling, [1], index=index) for index in range(3)]
    for step in logits:
        for sampler in together:
            sampler.pick(step)
    assert [list(sampler.output_ids) for sampler in together] == [run(sampling, logits, index=i) for i in range(3)]


def test_the_stream_of_a_seed_never_changes():
    assert run(SamplingParams(seed=5, **WARM), scripted(0, 6)) == [42, 36, 5, 3, 3, 34]


def test_without_a_seed_rows_differ_and_the_seed_used_reproduces_them():
    logits = scripted(0, 32)
    sampler, other = RowSampler(SamplingParams(**WARM), [1]), RowSampler(SamplingParams(**WARM), [1])
    tokens = [sampler.pick(step).token_id for step in logits]
    assert sampler.seed != other.seed
    assert run(SamplingParams(seed=sampler.seed, **WARM), logits) == tokens


def test_the_seed_given_is_the_seed_used():
    assert RowSampler(SamplingParams(seed=7), [1]).seed == 7


def test_logprobs_are_absent_unless_asked_for():
    assert RowSampler(SamplingParams(), [1]).pick(favouring(5)) == Pick(5, None, ())


def test_logprobs_are_of_the_distribution_before_any_option():
    options = {"temperature": 0.1, "top_k": 1, "logit_bias": {9: 100}, "logprobs": True, "top_logprobs": 2}
    logits = favouring(5, 6)
    chosen = RowSampler(SamplingParams(seed=0, **options), [1]).pick(logits)
    expected, top = row.logprobs(logits, 9, 2)
    assert chosen == Pick(9, expected, top)
    assert [token_id for token_id, _ in chosen.top] == [5, 6]


def test_logprobs_without_top_logprobs_is_the_chosen_token_alone():
    chosen = RowSampler(SamplingParams(logprobs=True), [1]).pick(f32(0, 0))
    assert chosen == Pick(0, pytest.approx(-np.log(2)), ())


def test_logprobs_of_named_tokens_come_after_the_likeliest():
    logits = f32(0, np.log(2), np.log(5))
    options = {"logprobs": True, "top_logprobs": 1, "logprob_token_ids": [1, 0]}
    chosen = RowSampler(SamplingParams(**options), [1]).pick(logits)
    assert [token_id for token_id, _ in chosen.top] == [2, 1, 0]
    assert np.exp([logprob for _, logprob in chosen.top]) == pytest.approx([5 / 8, 2 / 8, 1 / 8])


def test_a_logprob_of_a_token_that_there_is_not_is_refused():
    sampler = RowSampler(SamplingParams(logprobs=True, logprob_token_ids=[2]), [1])
    with pytest.raises(MisuseError, match="names token 2; the model's tokens are 0 to 1"):
        sampler.pick(f32(0, 0))


@settings(derandomize=True, deadline=None)
@given(
    st.builds(
        SamplingParams,
        max_tokens=st.integers(8, 12),
        min_tokens=st.integers(0, 8),
        temperature=st.sampled_from([0.0, 0.7, 5.0]),
        top_p=st.sampled_from([0.5, 1.0]),
        repetition_penalty=st.sampled_from([0.8, 1.0, 1.5]),
        presence_penalty=st.floats(-2, 2),
        frequency_penalty=st.floats(-2, 2),
        no_repeat_ngram_size=st.sampled_from([0, 2]),
        logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100), max_size=3),
        seed=st.integers(0, 9),
    ),
    st.integers(0, 99),
)
def test_any_options_yield_a_row_that_ends_within_its_bounds_and_leaves_the_logits(sampling, seed):
    logits = scripted(seed, sampling.max_tokens)
    before = logits.copy()
    sampler = RowSampler(sampling, [1, 4], eos_token_ids=[EOS])
    for step in logits:
        sampler.pick(step)
        if sampler.finish_reason:
            break
    assert sampling.min_tokens <= len(sampler.output_ids) <= sampling.max_tokens
    assert sampler.finish_reason == ("stop" if sampler.output_ids[-1] == EOS else "length")
    np.testing.assert_array_equal(logits, before)


class Alternating(Constraint):
    """By hand: tokens 5 and 6 in turn, then the end."""

    def __init__(self, length):
        self.length, self.accepted = length, []

    def allowed(self, logits):
        mask = np.zeros(logits.size, np.bool_)
        mask[5 + len(self.accepted) % 2 if len(self.accepted) < self.length else EOS] = True
        return mask

    def accept(self, token_id):
        self.accepted.append(token_id)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.5, "seed": 1, "top_k": 2}])
def test_a_constraint_rules_whatever_the_logits_say(options):
    sampler = RowSampler(SamplingParams(**options), [1], eos_token_ids=[EOS], constraint=Alternating(3))
    picked = []
    for logits in scripted(0, 9):
        picked.append(sampler.pick(logits).token_id)
        if sampler.finish_reason is not None:
            break
    assert (picked, sampler.finish_reason) == ([5, 6, 5, EOS], "stop")


def test_a_constraint_needs_logits_on_the_host():
    assert RowSampler(SamplingParams(), [1], constraint=Alternating(1)).needs_logits
    assert not RowSampler(SamplingParams(), [1]).needs_logits


def test_a_constraint_that_allows_nothing_the_options_allow_is_told():
    sampler = RowSampler(SamplingParams(logit_bias={}, suppress_tokens=(5,)), [1], constraint=Alternating(1))
    with pytest.raises(MisuseError, match="grammar"):
        sampler.pick(favouring(5))


def test_forced_tokens_are_the_first_and_the_last_that_max_tokens_leaves():
    sampler = RowSampler(SamplingParams(max_tokens=3, forced_bos_token_id=4, forced_eos_token_id=1), [0])
    logits = np.array([0, 0, 9, 0, 0], np.float32)
    assert sampler.needs_logits
    assert [sampler.pick(logits).token_id for _ in range(3)] == [4, 2, 1]
