import dataclasses

import numpy as np
import pytest
from toy_model import history_script, manifest_of

from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.speculation import (
    LONGEST_DRAFT,
    PROBE_SIZES,
    Speculator,
    StepCost,
    Verification,
    exact_tokens,
)

PERIODIC = [5, 6, 7, 8] * 4
TOKENS = list(range(3, 3 + max(PROBE_SIZES)))


class RoundingEngine(ScriptedEngine):
    """A token among more than `exact_len` comes out one bit higher than alone."""

    exact_len = 1

    def prefill(self, slot, token_ids, num_logits=1):
        rows = super().prefill(slot, token_ids, num_logits)
        return np.nextafter(rows, np.float32(np.inf)) if len(token_ids) > self.exact_len else rows


def engine_of(kind=ScriptedEngine, capacity=64):
    engine = kind(history_script(23), vocab_size=23, capacity=capacity)
    engine.prefill(engine.cache.admit(), [3, 4, 5])
    return engine


def exact(costs=None):
    """A verification that trusts its engine; `costs` are seconds by number of tokens."""
    verification = Verification()
    verification.most_tokens = max(PROBE_SIZES)
    for num_tokens, seconds in (costs or {}).items():
        verification.cost.observe(num_tokens, seconds)
    return verification


def guesses(speculator, token_ids, num_others=0):
    """What is guessed before each token of a row, told what really came."""
    found = []
    for token_id in token_ids:
        found.append(speculator.draft(99, num_others))
        speculator.observe(token_id)
    return found


def test_an_engine_that_computes_a_token_among_others_as_alone_is_exact():
    engine, verification = engine_of(), Verification()
    verification.probe(engine, 0, TOKENS)
    assert (verification.most_tokens, verification.longest_draft) == (16, LONGEST_DRAFT)


def test_one_bit_of_difference_is_not_exact():
    engine, verification = engine_of(RoundingEngine), Verification()
    verification.probe(engine, 0, TOKENS)
    assert (verification.most_tokens, verification.longest_draft) == (0, 0)


@pytest.mark.parametrize(("exact_len", "longest"), [(3, 0), (4, 3), (15, 7), (16, 15)])
def test_guesses_are_no_longer_than_what_was_seen_to_be_exact(exact_len, longest):
    engine, verification = engine_of(RoundingEngine), Verification()
    engine.exact_len = exact_len
    verification.probe(engine, 0, TOKENS)
    assert verification.longest_draft == longest


@pytest.mark.parametrize("kind", [ScriptedEngine, RoundingEngine])
def test_a_probe_leaves_the_slot_as_it_was(kind):
    engine = engine_of(kind)
    Verification().probe(engine, 0, TOKENS)
    assert engine.cache.lengths[0] == 3


@pytest.mark.parametrize(("capacity", "tokens"), [(3 + max(PROBE_SIZES) - 1, TOKENS), (64, TOKENS[1:])])
def test_nothing_is_learned_without_room_or_tokens_for_it(capacity, tokens):
    engine, verification = engine_of(capacity=capacity), Verification()
    verification.probe(engine, 0, tokens)
    assert verification.most_tokens is None
    assert len(engine.calls) == 1


def test_a_probe_learns_what_steps_cost():
    engine, verification = engine_of(), Verification()
    verification.probe(engine, 0, TOKENS)
    assert 0 < verification.cost.seconds(1) < 1


def test_nothing_is_guessed_on_an_engine_that_is_not_exact():
    verification = Verification()
    verification.most_tokens = 0
    assert Speculator(verification, PERIODIC, 8).draft(99, 0) == []


def test_costs_are_a_line_through_what_was_seen():
    cost = StepCost()
    for num_tokens in (1, 5, 9, 3) * 20:
        cost.observe(num_tokens, 2.0 + 0.5 * num_tokens)
    assert cost.seconds(1) == pytest.approx(2.5)
    assert cost.seconds(7) == pytest.approx(5.5)


def test_costs_follow_a_machine_that_becomes_slower():
    cost = StepCost()
    for scale in (1.0, 3.0):
        for num_tokens in (1, 9) * 200:
            cost.observe(num_tokens, scale * (1 + 0.1 * num_tokens))
    assert cost.seconds(4) == pytest.approx(4.2, rel=0.01)


def test_no_tokens_cost_nothing():
    assert StepCost().seconds(0) == 0


def test_a_further_token_never_costs_less_than_nothing():
    assert exact({1: 1.0, 9: 0.5}).cost.seconds(20) >= exact({1: 1.0, 9: 0.5}).cost.seconds(1) > 0


def test_guesses_grow_while_they_come_true():
    lengths = [len(guess) for guess in guesses(Speculator(exact(), PERIODIC, 16), PERIODIC * 8)]
    assert max(lengths[-8:]) > lengths[0] > 0


def test_a_guess_is_never_longer_than_allowed_or_than_the_row_has_left():
    speculator = Speculator(exact(), PERIODIC * 8, 6)
    guesses(speculator, PERIODIC * 8)
    assert len(speculator.draft(99, 0)) == 6
    assert len(speculator.draft(4, 0)) == 3
    assert speculator.draft(1, 0) == []


def test_a_row_that_never_repeats_itself_stops_guessing():
    # Every second token is 5 and what follows it is always new: the guess behind a 5 is always wrong.
    row = [token for fresh in range(10, 90) for token in (5, fresh)]
    found = guesses(Speculator(exact(), row[:20], 8), row[20:])
    assert not any(found[-40:])


def test_a_match_that_holds_is_a_longer_match_so_guesses_end_where_runs_end():
    # Behind a 5 come six tokens that always follow one another, then something new: guesses become as long as the run.
    run = [5, 21, 22, 23, 24, 25, 26]
    row = [token for fresh in range(100, 140) for token in (fresh, *run)]
    found = guesses(Speculator(exact({1: 1.0, 9: 1.2}), row[:16], 15), row[16:])
    behind_five = [len(guess) for guess, token in zip(found, row[16:], strict=True) if token == 21]
    assert behind_five[-5:] == [6] * 5


def test_a_row_that_begins_to_repeat_is_noticed_without_having_guessed():
    row = [token for fresh in range(10, 90) for token in (5, fresh)]
    speculator = Speculator(exact(), row[:20], 8)
    guesses(speculator, row[20:])
    times = speculator.num_drafted
    guesses(speculator, row[20:])
    assert speculator.num_drafted > times


def test_nothing_is_guessed_where_each_token_of_a_step_costs_a_step():
    assert not any(guesses(Speculator(exact({1: 1.0, 8: 8.0}), PERIODIC, 8), PERIODIC))


def test_leaving_a_shared_step_must_pay_too():
    cheap = {1: 1.0, 8: 1.35}  # a row more in a step adds 5 %
    speculator = Speculator(exact(cheap), [5, 6, 5, 6], 1)
    assert speculator.draft(99, 0)
    assert not Speculator(exact(cheap), [5, 6, 5, 6], 1).draft(99, 7)


def test_counts_are_of_verified_guesses_alone():
    speculator = Speculator(exact(), PERIODIC, 3)
    guess = speculator.draft(99, 0)
    for token_id in [*guess[:-1], 21]:
        speculator.observe(token_id)
    assert (speculator.num_drafted, speculator.num_accepted, speculator.num_verified) == (3, 2, 1)


def test_forced_tokens_are_drafted_up_to_what_is_exact_and_what_the_row_has_left():
    speculator = Speculator(exact({1: 1.0, 16: 1.3}), PERIODIC, 0)
    assert not speculator.looks_up
    assert speculator.draft(99, 0) == []
    assert speculator.draft(99, 0, range(40)) == list(range(15))
    assert speculator.draft(4, 0, range(40)) == [0, 1, 2]
    assert speculator.draft(1, 0, range(40)) == []


def test_forced_tokens_come_before_what_is_looked_up():
    assert Speculator(exact(), PERIODIC, 8).draft(99, 0, [20, 21]) == [20, 21]


def test_forced_tokens_that_the_model_spells_otherwise_are_no_longer_drafted():
    speculator = Speculator(exact({1: 1.0, 2: 1.5}), [], 0)
    found = []
    for _ in range(40):
        found.append(speculator.draft(99, 0, [20]))
        speculator.observe(21)
    assert found[0] == [20]
    assert found[-1] == []


def test_an_engine_that_was_not_made_for_it_is_not_even_asked():
    engine, verification = engine_of(), Verification(limit=0)
    assert (verification.most_tokens, verification.longest_draft) == (0, 0)
    assert Speculator(verification, PERIODIC, 8).draft(99, 0) == []
    assert len(engine.calls) == 1


def test_no_more_tokens_are_verified_than_the_engine_was_made_for():
    engine, verification = engine_of(), Verification(limit=8)
    verification.probe(engine, 0, TOKENS)
    assert verification.longest_draft == 7


@pytest.mark.parametrize(
    ("got", "tokens"),
    [
        ({"attention_layers": 2, "own_kernels": {"attention": 2}}, 16),
        ({"attention_layers": 2, "own_kernels": {"attention": 1}}, 0),
        ({"attention_layers": 2}, 0),
        ({"own_kernels": "yes"}, 0),
        ({}, 0),
    ],
)
def test_engines_whose_every_attention_is_our_own_are_made_for_it(got, tokens):
    (spec,) = manifest_of().engines
    assert exact_tokens(dataclasses.replace(spec, actual=got)) == tokens
