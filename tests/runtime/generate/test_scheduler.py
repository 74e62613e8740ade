import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_model import history_script

from piston.core.errors import EmptyPromptError, EngineError, MisuseError, PromptTooLongError
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.chunk_size import LEAST_CHUNK
from piston.runtime.generate.decode import beam_search
from piston.runtime.generate.request import Ended, Found, Request, Token
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.generate.speculation import PROBE_SIZES, Speculator, Verification
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint, RowSampler

VOCAB, END = 23, 2
SCRIPT, ENDING = history_script(VOCAB), history_script(VOCAB, end=END, every=9)


def engine_of(num_slots=2, capacity=256, script=SCRIPT):
    return ScriptedEngine(script, vocab_size=VOCAB, num_slots=num_slots, capacity=capacity)


def request_of(prompt, max_tokens=6, ends=(), **options):
    return Request(
        list(prompt), RowSampler(SamplingParams(max_tokens=max_tokens), prompt, eos_token_ids=ends), **options
    )


def continuation(prompt, max_tokens=6, script=SCRIPT, ends=()):
    """What a row gives, by the script alone."""
    history = list(prompt)
    while len(history) < len(prompt) + max_tokens and (history[len(prompt) :] or [None])[-1] not in ends:
        history.append(int(np.argmax(script(tuple(history)))))
    return history[len(prompt) :]


def run(scheduler):
    events = []
    while scheduler.has_work:
        events += scheduler.step()
    return events


def kinds_of(engine):
    return [kind for kind, _ in engine.calls]


def test_a_request_that_is_added_later_joins_the_running_ones():
    engine = engine_of()
    scheduler, first, second = Scheduler(engine), request_of([3], 8), request_of([4, 5], 8)
    scheduler.add(first)
    list(scheduler.step())
    list(scheduler.step())
    scheduler.add(second)
    run(scheduler)
    assert [first.output_ids, second.output_ids] == [continuation([3], 8), continuation([4, 5], 8)]
    assert {"step"} < {kind for kind, call in engine.calls if kind == "step" or len(call) > 1}
    assert engine.cache.num_free == 2


def test_requests_are_served_in_the_order_they_came():
    scheduler = Scheduler(engine_of(num_slots=1))
    requests = [request_of([token], 3) for token in (3, 4, 5, 6)]
    for request in requests:
        scheduler.add(request)
    firsts = [event.request for event in run(scheduler) if isinstance(event, Token) and event.finish_reason]
    assert firsts == requests


@pytest.mark.parametrize(
    ("prompt", "max_tokens", "error"), [([], 1, EmptyPromptError), ([3] * 250, 9, PromptTooLongError)]
)
def test_what_can_never_run_is_refused_when_it_is_added(prompt, max_tokens, error):
    scheduler = Scheduler(engine_of())
    with pytest.raises(error):
        scheduler.add(request_of(prompt, max_tokens))
    assert not scheduler.has_work


def test_a_cancelled_request_ends_and_gives_its_slot_back():
    engine = engine_of()
    scheduler, cancelled, other = Scheduler(engine), request_of([3], 20), request_of([4], 20)
    scheduler.add(cancelled)
    scheduler.add(other)
    list(scheduler.step())
    scheduler.cancel(cancelled)
    events = run(scheduler)
    assert [event for event in events if isinstance(event, Ended)] == [Ended(cancelled, "cancelled")]
    assert other.output_ids == continuation([4], 20)
    assert engine.cache.num_free == 2


def test_a_request_that_is_cancelled_while_it_waits_never_runs():
    engine = engine_of(num_slots=1)
    scheduler, running, waiting = Scheduler(engine), request_of([3], 4), request_of([4], 4)
    scheduler.add(running)
    scheduler.add(waiting)
    waiting.cancel()
    run(scheduler)
    assert [call[1][1] for call in engine.calls if call[0] == "prefill"] == [[3]]


@pytest.mark.parametrize("num_tokens", [1, 3])
def test_a_request_that_is_cancelled_while_its_token_is_delivered_ends_at_once(num_tokens):
    engine = engine_of()
    scheduler, request = Scheduler(engine), request_of([3], 9)
    scheduler.add(request)
    events = []
    while scheduler.has_work:
        for event in scheduler.step():
            events.append(event)
            if len(request.output_ids) == num_tokens:
                request.cancel()  # as another thread does at any moment
    assert [type(event) for event in events] == [Token] * num_tokens + [Ended]
    assert engine.cache.num_free == engine.cache.num_slots


def test_a_request_ends_at_its_deadline_running_or_waiting():
    scheduler = Scheduler(engine_of(num_slots=1))
    late, waiting = request_of([3], 30), request_of([4], 30, deadline=time.monotonic() - 1)
    scheduler.add(late)
    list(scheduler.step())
    late.deadline = time.monotonic() - 1
    scheduler.add(waiting)
    assert {(event.request, event.reason) for event in run(scheduler)} == {(late, "deadline"), (waiting, "deadline")}


def test_an_error_of_one_row_ends_that_row_alone():
    scheduler, good, bad = Scheduler(engine_of()), request_of([4], 9), request_of([3], 9)
    for request in (bad, good):
        scheduler.add(request)
    list(scheduler.step())

    def fail(_):
        raise MisuseError("no token is left")

    bad.sampler.pick = fail
    ended = [event for event in run(scheduler) if isinstance(event, Ended)]
    assert [(event.request, event.reason, str(event.error)) for event in ended] == [(bad, "error", "no token is left")]
    assert good.output_ids == continuation([4], 9)
    assert scheduler.engine.cache.num_free == 2


def test_an_error_of_a_prefill_ends_that_row_alone():
    def script(history):
        if history[0] == 9:
            raise EngineError("the prompt is too strange")
        return SCRIPT(history)

    scheduler, bad, good = Scheduler(engine_of(script=script)), request_of([9, 4]), request_of([4])
    scheduler.add(bad)
    scheduler.add(good)
    ended = [event for event in run(scheduler) if isinstance(event, Ended)]
    assert [event.request for event in ended] == [bad]
    assert good.output_ids == continuation([4])
    assert scheduler.engine.cache.num_free == 2


def test_an_error_of_a_step_of_all_rows_is_raised():
    calls = iter(range(1000))

    def script(history):
        if next(calls) > 3:
            raise EngineError("the device is gone")
        return SCRIPT(history)

    scheduler = Scheduler(engine_of(script=script))
    scheduler.add(request_of([3], 30))
    with pytest.raises(EngineError, match="the device is gone"):
        run(scheduler)
    scheduler.close()
    assert scheduler.engine.cache.num_free == 2


def test_with_a_bound_running_rows_are_decoded_between_the_chunks_of_a_long_prompt():
    engine = engine_of()
    scheduler, running, long = Scheduler(engine, max_stall=1e-9), request_of([3], 40), request_of([5] * 200, 2)
    scheduler.add(running)
    list(scheduler.step())
    scheduler.add(long)
    run(scheduler)
    prompts = [call[1][1] for call in engine.calls if call[0] == "prefill"][1:]
    assert sum(map(len, prompts)) == 200
    assert [len(prompt) for prompt in prompts][:3] == [LEAST_CHUNK] * 3
    kinds = kinds_of(engine)
    second = kinds.index("prefill", 1)
    alternating = kinds[second : second + 2 * (len(prompts) - 1)]
    assert set(alternating[::2]) == {"prefill"}
    assert set(alternating[1::2]) == {"step"}
    assert [running.output_ids, long.output_ids] == [continuation([3], 40), continuation([5] * 200, 2)]


def test_short_prompts_take_turns_with_a_long_one_that_came_before():
    engine = engine_of(capacity=2000, num_slots=4)
    scheduler, running, long = Scheduler(engine, max_stall=1e-9), request_of([3], 400), request_of([5] * 600, 2)
    scheduler.add(running)
    list(scheduler.step())
    short = [request_of([7] * 30, 1), request_of([9] * 20, 1)]
    for request in [long, *short]:
        scheduler.add(request)
    ended = [event.request for event in run(scheduler) if isinstance(event, Token) and event.finish_reason]
    assert ended == [*short, long, running]
    first_tokens = [call[1][1][0] for call in engine.calls if call[0] == "prefill"][1:]
    assert first_tokens[:11] == [5, 5, 7, 5, 7, 5, 7, 5, 9, 5, 9]  # one is admitted in a step
    assert set(first_tokens[11:]) == {5}
    assert [request.output_ids for request in [long, *short]] == [
        continuation(request.prompt_ids, len(request.output_ids)) for request in [long, *short]
    ]


def test_a_prompt_as_long_as_what_is_left_of_the_one_before_waits_for_it():
    scheduler, first, second = (
        Scheduler(engine_of(capacity=2000), max_stall=1e-9),
        *(request_of([token] * 1500, 1) for token in (5, 7)),
    )
    scheduler.add(first)
    scheduler.add(second)
    list(scheduler.step())
    assert [scheduler.num_running, scheduler.num_waiting] == [1, 1]


def test_with_nothing_else_running_a_prompt_is_prefilled_at_once():
    engine = engine_of()
    scheduler = Scheduler(engine, max_stall=1e-9)
    scheduler.add(request_of([5] * 100, 1))
    run(scheduler)
    assert kinds_of(engine) == ["prefill"]


def test_a_request_that_is_cancelled_in_the_middle_of_its_prompt_gives_its_slot_back():
    scheduler = Scheduler(engine_of(), max_stall=1e-9)
    running, long = request_of([3], 30), request_of([5] * 100, 2)
    scheduler.add(running)
    list(scheduler.step())
    scheduler.add(long)
    list(scheduler.step())
    assert 0 < long.num_prefilled < 100
    long.cancel()
    events = run(scheduler)
    assert Ended(long, "cancelled") in events
    assert long.output_ids == []
    assert scheduler.engine.cache.num_free == 2


def test_the_second_turn_of_a_chat_prefills_only_what_is_new():
    engine = engine_of(num_slots=3)
    scheduler = Scheduler(engine, keep_prefixes=True)
    first = request_of([3, 4, 5, 6], 3)
    scheduler.add(first)
    run(scheduler)
    between = request_of([7, 8], 3)
    scheduler.add(between)
    run(scheduler)
    second = request_of([3, 4, 5, 6, *first.output_ids, 9], 3)
    scheduler.add(second)
    run(scheduler)
    assert second.num_cached == 4 + len(first.output_ids) - 1
    assert second.num_prefilled == len(second.prompt_ids) - second.num_cached
    assert second.output_ids == continuation(second.prompt_ids, 3)


def test_prefixes_are_shared_only_under_the_same_salt():
    scheduler, found = Scheduler(engine_of(num_slots=3), keep_prefixes=True), []
    for salt in ("a", "b", "a"):
        request = request_of([3, 4, 5, 6], 3, cache_salt=salt)
        scheduler.add(request)
        run(scheduler)
        found.append(request.num_cached)
    assert found == [0, 0, 3]


def test_the_prefix_that_was_used_longest_ago_is_given_away_first():
    scheduler = Scheduler(engine_of(num_slots=2), keep_prefixes=True)
    for prompt in ([3] * 4, [4] * 4, [5] * 4):
        scheduler.add(request_of(prompt, 2))
        run(scheduler)
    for prompt, cached in (([4] * 4, 3), ([5] * 4, 3), ([3] * 4, 0)):
        request = request_of(prompt, 2)
        scheduler.add(request)
        run(scheduler)
        assert request.num_cached == cached


def test_close_gives_every_slot_back():
    engine = engine_of(num_slots=3)
    scheduler = Scheduler(engine, keep_prefixes=True, max_stall=1e-9)
    scheduler.add(request_of([3, 4], 2))
    run(scheduler)
    scheduler.add(request_of([4], 30))
    list(scheduler.step())
    scheduler.add(request_of([5] * 90, 30))
    list(scheduler.step())
    scheduler.close()
    assert engine.cache.num_free == 3
    assert not scheduler.has_work


class Spelt(Constraint):
    """Tokens by hand, then whatever the model says; forced up to there."""

    def __init__(self, token_ids):
        self.left = list(token_ids)

    def allowed(self, logits):
        mask = np.full(logits.size, not self.left)
        mask[self.left[:1]] = True
        return mask

    def accept(self, _token_id):
        del self.left[:1]

    def forced(self):
        return self.left


def drawn(data, verification):
    """A request of any kind, and what it gives when it runs alone."""
    prompt = data.draw(st.lists(st.integers(3, 8), min_size=1, max_size=40))
    max_tokens, salt = data.draw(st.integers(1, 12)), data.draw(st.sampled_from("ab"))
    spelt = data.draw(st.lists(st.integers(3, 8), max_size=5))
    sampler = RowSampler(
        SamplingParams(max_tokens=max_tokens),
        prompt,
        eos_token_ids=[END],
        constraint=Spelt(spelt) if spelt else None,
    )
    limit = data.draw(st.sampled_from([0, 4]))
    speculator = Speculator(verification, prompt, limit) if spelt or limit else None
    request = Request(prompt, sampler, cache_salt=salt, speculator=speculator)
    free = continuation(prompt + spelt, max_tokens - len(spelt), ENDING, [END]) if max_tokens > len(spelt) else []
    return request, [*spelt, *free][:max_tokens]


def take_step(scheduler, requests, begun, delivered):
    """One step: nobody gets a token after it was cancelled, or was late, or has ended."""
    stopped = {id(request) for request in requests if request.is_cancelled or request.deadline == 0.0}
    for event in scheduler.step():
        assert id(event.request) not in delivered
        if isinstance(event, Token):
            assert id(event.request) not in stopped
            if event.request not in begun:
                begun.append(event.request)
        if isinstance(event, Ended) or event.finish_reason is not None:
            delivered.add(id(event.request))


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_whatever_is_added_cancelled_and_late_every_row_is_the_row_alone_and_no_slot_is_lost(data):
    engine = engine_of(num_slots=data.draw(st.integers(1, 4)), script=ENDING)
    keep_prefixes, verification = data.draw(st.booleans()), Verification()
    scheduler = Scheduler(engine, max_stall=data.draw(st.sampled_from([None, 1e-9])), keep_prefixes=keep_prefixes)
    requests, expected, begun, delivered = [], {}, [], set()
    for _ in range(data.draw(st.integers(5, 40))):
        match data.draw(st.sampled_from(["add", "cancel", "late", "step", "step", "step"])):
            case "add":
                request, alone = drawn(data, verification)
                requests.append(request)
                expected[id(request)] = alone
                scheduler.add(request)
            case "cancel" if requests:
                data.draw(st.sampled_from(requests)).cancel()
            case "late" if requests:
                data.draw(st.sampled_from(requests)).deadline = 0.0
            case _:
                take_step(scheduler, requests, begun, delivered)
    while scheduler.has_work:
        take_step(scheduler, requests, begun, delivered)
    assert begun == [request for request in requests if request in begun]  # first come, first served
    for request in requests:
        is_whole = not request.is_cancelled and request.deadline is None
        alone = expected[id(request)]
        assert request.output_ids == (alone if is_whole else alone[: len(request.output_ids)])
    num_idle = scheduler.prefixes.num_idle if keep_prefixes else 0
    assert engine.cache.num_free + num_idle == engine.cache.num_slots
    scheduler.close()
    assert engine.cache.num_free == engine.cache.num_slots


@pytest.mark.parametrize("max_stall", [None, 0.001])
def test_the_logprobs_of_a_prompt_are_those_of_its_positions_also_when_it_is_cached(max_stall):
    prompt = [int(token) for token in np.random.default_rng(0).integers(3, VOCAB, 150)]
    scheduler = Scheduler(engine_of(), max_stall=max_stall, keep_prefixes=True)
    scheduler.add(request_of(prompt))
    run(scheduler)
    request = request_of(prompt, num_prompt_logprobs=2)
    scheduler.add(request)
    run(scheduler)
    assert request.output_ids == continuation(prompt)
    assert len(request.prompt_logprobs) == len(prompt) - 1
    for position in (0, 63, 64, 100, 148):
        logits = SCRIPT(tuple(prompt[: position + 1])).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        logprob, top = request.prompt_logprobs[position]
        assert logprob == pytest.approx(expected[prompt[position + 1]], abs=1e-5)
        assert [token_id for token_id, _ in top] == np.argsort(-expected)[:2].tolist()


def test_chats_of_one_system_prompt_keep_their_own_prefixes():
    engine = engine_of(num_slots=4)
    scheduler, system = Scheduler(engine, keep_prefixes=True), [3, 4, 5, 6] * 5

    def turn(prompt):
        request = request_of(prompt, 3)
        scheduler.add(request)
        run(scheduler)
        assert request.output_ids == continuation(prompt, 3)
        return request

    one, other = turn([*system, *[7] * 50]), turn([*system, *[8] * 50])
    assert (one.num_cached, other.num_cached) == (0, len(system))
    for earlier in (one, other):
        later = turn([*earlier.prompt_ids, *earlier.output_ids, 9])
        assert later.num_cached == len(earlier.prompt_ids) + len(earlier.output_ids) - 1


def test_forced_tokens_are_verified_as_a_draft_and_change_no_token():
    spelt, prompt = [5, 9, 11, 3, 17, 4], list(range(3, 20))
    found = {}
    for limit in (0, max(PROBE_SIZES)):
        verification = Verification(limit)
        verification.cost.observe = lambda num_tokens, seconds: None  # no clock: a token more costs a tenth
        sampler = RowSampler(SamplingParams(max_tokens=12), prompt, constraint=Spelt(spelt))
        request = Request(prompt, sampler, speculator=Speculator(verification, prompt, 0))
        engine = engine_of(num_slots=1)
        scheduler = Scheduler(engine)
        scheduler.add(request)
        run(scheduler)
        found[limit] = request.output_ids, request.speculator.num_accepted
    plain, verified = found.values()
    assert plain == ([*spelt, *continuation(prompt + spelt)], 0)
    assert verified == (plain[0], len(spelt) - 1)


def test_without_forced_tokens_a_row_with_a_constraint_costs_no_probe():
    engine = engine_of(num_slots=1)
    prompt = list(range(3, 20))
    sampler = RowSampler(SamplingParams(max_tokens=4), prompt, constraint=Spelt([]))
    scheduler = Scheduler(engine)
    scheduler.add(Request(prompt, sampler, speculator=Speculator(Verification(), prompt, 0)))
    run(scheduler)
    assert kinds_of(engine) == ["prefill", "step", "step", "step"]


BEAMS = BeamParams(num_beams=3, num_return_sequences=2)


def searched(prompt, max_tokens=6):
    """What a search finds alone."""
    (found,) = beam_search(engine_of(num_slots=3), [request_of(prompt, max_tokens)], BEAMS)
    return found


def test_a_search_runs_in_the_steps_of_other_rows_and_changes_neither():
    engine = engine_of(num_slots=5)
    scheduler, row, search = Scheduler(engine), request_of([3], 9), request_of([4, 5], beams=BEAMS)
    scheduler.add(row)
    list(scheduler.step())
    scheduler.add(search)
    events = run(scheduler)
    assert [event.hypotheses for event in events if isinstance(event, Found)] == [searched([4, 5])]
    assert row.output_ids == continuation([3], 9)
    assert max(len(call) for kind, call in engine.calls if kind == "step") == 4
    assert engine.cache.num_free == 5


def test_a_search_waits_for_as_many_slots_as_beams_and_rows_behind_it_wait_too():
    engine = engine_of(num_slots=3)
    scheduler, first, last = Scheduler(engine), request_of([3], 4), request_of([7], 2)
    search = request_of([4, 5], beams=BEAMS)
    for request in (first, search, last):
        scheduler.add(request)
    ended = [
        event.request for event in run(scheduler) if isinstance(event, Found) or getattr(event, "finish_reason", None)
    ]
    assert ended == [first, search, last]
    assert last.output_ids == continuation([7], 2)


def test_a_prompt_of_a_search_is_prefilled_in_chunks_and_kept():
    engine = engine_of(num_slots=4)
    scheduler = Scheduler(engine, max_stall=1e-9, keep_prefixes=True)
    prompt = [*range(3, 20)] * 8
    for _ in range(2):
        row, search = request_of([3], 12), request_of(prompt, beams=BEAMS)
        scheduler.add(row)
        list(scheduler.step())
        scheduler.add(search)
        events = run(scheduler)
        assert [event.hypotheses for event in events if isinstance(event, Found)] == [searched(prompt)]
        assert row.output_ids == continuation([3], 12)
    assert search.num_cached == len(prompt) - 1
    scheduler.close()
    assert engine.cache.num_free == 4


@pytest.mark.parametrize("end", [lambda request: request.cancel(), lambda request: setattr(request, "deadline", 0.0)])
def test_a_search_that_is_cancelled_or_late_frees_its_slots(end):
    engine = engine_of(num_slots=3)
    scheduler, search = Scheduler(engine), request_of([4, 5], 50, beams=BEAMS)
    scheduler.add(search)
    for _ in range(3):
        list(scheduler.step())
    assert (scheduler.num_running, engine.cache.num_free) == (3, 0)
    end(search)
    (event,) = run(scheduler)
    assert isinstance(event, Ended)
    assert event.reason in {"cancelled", "deadline"}
    assert engine.cache.num_free == 3


def test_a_search_that_fails_ends_alone():
    def script(history):
        logits = SCRIPT(history)
        return np.full_like(logits, np.nan) if history[0] == 4 and len(history) > 3 else logits

    engine = engine_of(num_slots=4, script=script)
    scheduler, row, search = Scheduler(engine), request_of([3], 9), request_of([4, 5], beams=BEAMS)
    scheduler.add(row)
    scheduler.add(search)
    (failed,) = [event for event in run(scheduler) if isinstance(event, Ended)]
    assert failed.request is search
    assert isinstance(failed.error, EngineError)
    assert row.output_ids == continuation([3], 9)
    assert engine.cache.num_free == 4


def test_more_beams_than_slots_are_refused_when_they_are_added():
    with pytest.raises(MisuseError, match="num_beams is 3, but the engine has 2 free slots"):
        Scheduler(engine_of(num_slots=2)).add(request_of([4], beams=BEAMS))


def test_prompts_that_pass_a_long_one_leave_the_slots_of_its_beams():
    scheduler, short = Scheduler(engine_of(num_slots=4, capacity=2000), max_stall=1e-9), request_of([7] * 30, 200)
    search = request_of([5] * 300, 50, beams=BEAMS)
    for request in (search, short, request_of([9] * 20, 200)):
        scheduler.add(request)
    events = run(scheduler)
    assert [event.request for event in events if isinstance(event, Found)] == [search]
    assert not [event for event in events if isinstance(event, Ended)]
