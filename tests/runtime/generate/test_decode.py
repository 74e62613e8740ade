import itertools
import zlib

import numpy as np
import pytest
from toy_model import history_script

from piston.core.errors import EmptyPromptError, EngineError, MisuseError, PromptTooLongError
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.decode import decode
from piston.runtime.generate.request import Request, check_fits
from piston.runtime.generate.speculation import PROBE_SIZES, PROBE_STEPS, Speculator, Verification
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

VOCAB, END = 23, 2
SCRIPT = history_script(VOCAB, end=END, every=9)
PROMPTS = [[3], [4, 5, 6], [7] * 9, [8, 9], [3, 3, 3, 3], [10, 11], [12], [13, 14, 15]]


def engine_of(num_slots=1, capacity=64, script=SCRIPT):
    return ScriptedEngine(script, vocab_size=VOCAB, num_slots=num_slots, capacity=capacity)


def request_of(prompt, max_tokens=12, **options):
    return Request(
        list(prompt), RowSampler(SamplingParams(max_tokens=max_tokens), prompt, eos_token_ids=[END]), **options
    )


def tokens_of(engine, requests):
    for _ in decode(engine, requests):
        pass
    return [request.output_ids for request in requests]


def alone(prompt, max_tokens=12):
    return tokens_of(engine_of(), [request_of(prompt, max_tokens)])[0]


class OneBufferEngine(ScriptedEngine):
    """Overwrites the logits of every earlier call, as an engine may."""

    def step(self, tokens):
        logits = super().step(tokens)
        for row in getattr(self, "given", {}).values():
            row[:] = np.nan
        self.given = logits
        return logits


def failing_after(num_calls):
    calls = itertools.count()

    def script(history):
        if next(calls) >= num_calls:
            raise EngineError("the device is gone")
        return SCRIPT(history)

    return script


def test_one_row_is_the_greedy_continuation_of_its_history():
    history = list(PROMPTS[1])
    expected = []
    while len(expected) < 12 and END not in expected:
        expected.append(int(np.argmax(SCRIPT(tuple(history + expected)))))
    assert alone(PROMPTS[1]) == expected


def test_these_prompts_end_at_different_lengths():
    assert len({len(alone(prompt)) for prompt in PROMPTS}) > 3  # else the tests below would show little


@pytest.mark.parametrize("num_slots", [1, 2, 3, 8])
def test_each_row_of_a_ragged_batch_is_the_row_alone(num_slots):
    rows = tokens_of(engine_of(num_slots), [request_of(prompt) for prompt in PROMPTS])
    assert rows == [alone(prompt) for prompt in PROMPTS]


def test_rows_in_flight_are_stepped_together():
    engine = engine_of(3, script=history_script(VOCAB))
    tokens_of(engine, [request_of(prompt) for prompt in PROMPTS[:3]])
    assert max(len(call) for kind, call in engine.calls if kind == "step") == 3


def test_a_waiting_prompt_starts_as_soon_as_a_slot_is_free():
    engine = engine_of(2)
    long, short, waiting = request_of([3], 10), request_of([4, 5, 6], 1), request_of([8, 9], 3)
    tokens_of(engine, [long, short, waiting])
    kinds = [kind for kind, _ in engine.calls]
    assert kinds[:3] == ["prefill"] * 3


def test_every_slot_is_free_in_the_end():
    engine = engine_of(3)
    tokens_of(engine, [request_of(prompt) for prompt in PROMPTS])
    assert engine.cache.num_free == 3


def test_a_slot_that_is_kept_holds_all_but_the_last_token():
    engine = engine_of(2)
    request = request_of([3, 4], 5, keep_slot=True)
    slot = engine.cache.admit()
    request.slot = slot
    tokens_of(engine, [request])
    assert engine.cache.num_free == 1
    assert engine.cache.lengths[slot] == 2 + len(request.output_ids) - 1


def test_a_given_slot_prefills_only_what_it_does_not_hold():
    engine = engine_of(2)
    slot = engine.cache.admit()
    engine.prefill(slot, PROMPTS[2][:6])
    request = request_of(PROMPTS[2], slot=slot)
    assert tokens_of(engine, [request]) == [alone(PROMPTS[2])]
    assert engine.calls[1] == ("prefill", (slot, PROMPTS[2][6:]))
    assert request.num_prefilled == 3


def test_rewinding_one_slot_leaves_the_others_alone():
    engine = engine_of(2)
    first, second = request_of(PROMPTS[1], 8, keep_slot=True), request_of(PROMPTS[2], 8, keep_slot=True)
    rows = tokens_of(engine, [first, second])
    engine.cache.rewind(0, 1)
    tokens_of(engine, [request_of([4, 12], 3, slot=0, keep_slot=True)])
    again = request_of([*PROMPTS[2], *rows[1]], 4, slot=1)
    assert tokens_of(engine, [again]) == [alone([*PROMPTS[2], *rows[1]], 4)]


def test_releasing_one_row_leaves_the_others_alone():
    cancelled, other = request_of(PROMPTS[2]), request_of(PROMPTS[4])
    engine = engine_of(2)
    for token in decode(engine, [cancelled, other]):
        if token.request is cancelled:
            cancelled.cancel()
    assert len(cancelled.output_ids) == 1
    assert other.output_ids == alone(PROMPTS[4])


def test_the_last_token_of_a_row_and_no_other_tells_why_it_ended():
    request = request_of([3], 5)
    reasons = [token.finish_reason for token in decode(engine_of(), [request])]
    assert reasons == [*[None] * (len(reasons) - 1), "stop" if request.output_ids[-1] == END else "length"]


def test_the_end_token_ends_a_row():
    rows = [alone(prompt, 40) for prompt in PROMPTS]
    ended = [row for row in rows if END in row]
    assert ended
    assert all(row.index(END) == len(row) - 1 for row in ended)


def test_closing_the_generator_early_releases_every_slot():
    engine = engine_of(2)
    tokens = decode(engine, [request_of(prompt) for prompt in PROMPTS])
    next(tokens)
    tokens.close()
    assert engine.cache.num_free == 2


@pytest.mark.parametrize("num_calls", [0, 2, 14, 20])
def test_an_engine_that_fails_gives_its_slots_back(num_calls):
    engine = engine_of(2, script=failing_after(num_calls))
    requests = [request_of(prompt) for prompt in PROMPTS]
    with pytest.raises(EngineError, match="the device is gone"):
        tokens_of(engine, requests)
    assert engine.cache.num_free == 2


def test_an_interrupt_gives_the_slots_back():
    def script(history):
        raise KeyboardInterrupt

    engine = engine_of(2, script=script)
    with pytest.raises(KeyboardInterrupt):
        tokens_of(engine, [request_of([3])])
    assert engine.cache.num_free == 2


def test_a_failing_engine_leaves_a_kept_slot_to_its_owner():
    engine = engine_of(2, script=failing_after(4))
    slot = engine.cache.admit()
    with pytest.raises(EngineError):
        tokens_of(engine, [request_of([3, 4], slot=slot, keep_slot=True), request_of([5])])
    assert engine.cache.num_free == 1


def test_rows_beyond_the_capacity_are_refused_with_both_numbers_before_any_work():
    engine = engine_of(2, capacity=16)
    with pytest.raises(
        PromptTooLongError, match=r"9 tokens and max_tokens is 12, together 21, but the engine holds 16"
    ):
        tokens_of(engine, [request_of([3]), request_of(PROMPTS[2])])
    assert engine.calls == []
    assert engine.cache.num_free == 2


def test_a_row_may_fill_the_capacity_exactly():
    engine = engine_of(1, capacity=12, script=history_script(VOCAB, end=END, every=10**9))
    assert len(tokens_of(engine, [request_of([3, 4], 10)])[0]) == 10


def test_an_empty_prompt_is_refused_before_any_work():
    engine = engine_of()
    with pytest.raises(EmptyPromptError):
        tokens_of(engine, [request_of([3]), request_of([])])
    assert engine.calls == []


def test_check_fits_needs_no_slot():
    engine = engine_of()
    engine.cache.admit()
    check_fits(engine, request_of([3]))


def test_no_requests_are_no_work():
    engine = engine_of()
    assert list(decode(engine, [])) == []
    assert engine.calls == []


def test_requests_that_no_slot_can_ever_take_are_refused():
    engine = engine_of()
    engine.cache.admit()  # as an open conversation does
    with pytest.raises(MisuseError, match="All 1 slots are taken"):
        next(decode(engine, [request_of([3])]))


def test_rows_whose_consumer_uses_the_engine_between_tokens_stay_right():
    engine = OneBufferEngine(SCRIPT, vocab_size=VOCAB, num_slots=4)
    rows, others = [request_of(p) for p in PROMPTS[:2]], [request_of(p) for p in PROMPTS[2:4]]
    pending = [decode(engine, rows), decode(engine, others)]
    while pending:
        pending = [tokens for tokens in pending if next(tokens, None)]
    assert [request.output_ids for request in rows + others] == [alone(prompt) for prompt in PROMPTS[:4]]


def looping_script(vocab=VOCAB, period=6, end=None, every=1):
    """Mostly repeats what came `period` tokens before, sometimes not: much to guess, and some of it wrong."""

    def script(history):
        seed = zlib.crc32(np.asarray(history, np.int64).tobytes())
        logits = np.random.default_rng(seed).normal(size=vocab).astype(np.float32)
        if len(history) > period and seed % 5:
            logits[history[-period]] += 4.0
        if end is not None:
            logits[end] = 20.0 if seed % every == 0 else -20.0
        return logits

    return script


def cheaply_verifying():
    """A verification that never looks at the clock: a token more in a step costs the tenth that is assumed."""
    verification = Verification()
    verification.cost.observe = lambda num_tokens, seconds: None
    return verification


def guessing(prompts, sampling, num_slots, limit=6, script=None, **options):
    """Rows with and without guesses on one engine each; what came out and the guesses' counts."""
    results = []
    for is_guessing in (False, True):
        engine = ScriptedEngine(script or looping_script(), vocab_size=VOCAB, num_slots=num_slots, capacity=160)
        verification = cheaply_verifying()
        requests = [
            Request(
                list(prompt),
                RowSampler(sampling, prompt, eos_token_ids=[END], index=row),
                speculator=Speculator(verification, prompt, limit) if is_guessing else None,
                **options,
            )
            for row, prompt in enumerate(prompts)
        ]
        tokens = list(decode(engine, requests))
        picks = [[token.pick for token in tokens if token.request is request] for request in requests]
        results.append((picks, [request.sampler.finish_reason for request in requests], engine, requests))
    return results


LONG = [[3, 4, 5, 6, 7, 8] * 3, [9, 10, 11, 12, 13, 14, 9, 10], [*range(3, 20)], [15]]
OPTIONS = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_p": 0.9, "seed": 3},
    "penalized": {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "min_tokens": 9},
    "without repeats": {"no_repeat_ngram_size": 3},
    "with logprobs": {"logprobs": True, "top_logprobs": 2},
    "with a stop token": {"stop_token_ids": [7]},
}


@pytest.mark.parametrize("num_slots", [1, 2, 4])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_guessing_changes_no_token_and_no_logprob(options, num_slots):
    plain, guessed = guessing(LONG, SamplingParams(max_tokens=60, **options), num_slots)
    assert guessed[:2] == plain[:2]


def test_the_end_token_inside_a_guess_ends_the_row():
    plain, guessed = guessing(LONG, SamplingParams(max_tokens=60), 1, script=looping_script(end=END, every=17))
    assert guessed[:2] == plain[:2]
    assert "stop" in guessed[1]


def test_guesses_that_come_true_save_engine_calls():
    plain, guessed = guessing(LONG[:1], SamplingParams(max_tokens=100), 1)
    _, _, _, (request,) = guessed
    assert request.speculator.num_accepted > 20
    assert len(guessed[2].calls) - PROBE_STEPS - len(PROBE_SIZES) < 0.7 * len(plain[2].calls)


def test_a_row_may_fill_the_capacity_exactly_with_guesses():
    engine = ScriptedEngine(looping_script(), vocab_size=VOCAB, capacity=58)
    sampler = RowSampler(SamplingParams(max_tokens=40), LONG[0])
    request = Request(LONG[0], sampler, speculator=Speculator(cheaply_verifying(), LONG[0], 16))
    assert len(tokens_of(engine, [request])[0]) == 40


def test_a_kept_slot_holds_all_but_the_last_token_after_guesses_too():
    _, guessed = guessing(LONG[:2], SamplingParams(max_tokens=30), 2, keep_slot=True)
    engine, requests = guessed[2:]
    held = [len(request.prompt_ids) + len(request.output_ids) - 1 for request in requests]
    assert sorted(engine.cache.lengths) == sorted(held)


def test_cancelling_inside_a_right_guess_drops_what_was_verified_behind_it():
    engine = ScriptedEngine(looping_script(), vocab_size=VOCAB, capacity=160)
    request = Request(
        LONG[0],
        RowSampler(SamplingParams(max_tokens=90), LONG[0]),
        keep_slot=True,
        speculator=Speculator(cheaply_verifying(), LONG[0], 16),
    )
    seen = 0
    for _ in decode(engine, [request]):
        seen += 1
        if seen == 43:
            request.cancel()
    assert len(request.output_ids) == seen == 43
    assert engine.cache.lengths[0] == len(LONG[0]) + 43 - 1
