import pytest
from benched import ticking
from toy_model import answering, ids_of, said, toy_model

from piston.bench.local import LocalRun

SCRIPT = answering((ids_of("A"), ids_of("yes")), (ids_of("Bc"), ids_of("no")))


def run(prompts, gen_len, clock=None, num_slots=1):
    times = []
    local = LocalRun(toy_model(SCRIPT, num_slots=num_slots), clock or ticking())
    rows = local.run(prompts, gen_len, lambda: times.append(len(times)))
    return local, rows, times


def test_rows_are_the_models_own_greedy_answers_past_the_end_token():
    """Deterministic counts: what the model would stop at is generated like any other token."""
    _, rows, times = run([ids_of("A")], 6)
    answer = said(SCRIPT, "A")
    assert len(answer) < 6
    assert rows[0][: len(answer)] == answer
    assert len(rows[0]) == len(times) == 6


@pytest.mark.parametrize(("num_slots", "tokens_before"), [(1, [5, 6, 7, 8]), (2, [2, 4, 6, 8])])
def test_a_step_is_done_when_every_row_has_its_token(num_slots, tokens_before):
    """One slot generates row after row: the first token of all rows is the fifth of two rows of four."""
    model, done = toy_model(SCRIPT, num_slots=num_slots), []
    generated = lambda: sum(1 if kind == "prefill" else len(asked) for kind, asked in model.engine.calls)  # noqa: E731
    rows = LocalRun(model, ticking()).run([ids_of("A"), ids_of("Bc")], 4, lambda: done.append(generated()))
    assert [len(row) for row in rows] == [4, 4]
    assert done == tokens_before


def test_sampling_is_timed_around_each_pick_and_tokenizing_apart_from_the_run():
    local, _, _ = run([ids_of("A")], 5, ticking(0.25))
    assert local.parts == {"sample": pytest.approx(5 * 0.25), "tokenize": pytest.approx(0.25)}
