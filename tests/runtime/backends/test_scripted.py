import numpy as np
import pytest
from toy_model import history_script

from piston.core.errors import MisuseError, PromptTooLongError
from piston.runtime.backends.engine import Engine
from piston.runtime.backends.scripted import ScriptedEngine

SCRIPT = history_script(11)


@pytest.fixture
def engine():
    engine = ScriptedEngine(SCRIPT, vocab_size=11, num_slots=2, capacity=8)
    engine.cache.admit()
    engine.cache.admit()
    return engine


def test_it_is_an_engine(engine):
    assert isinstance(engine, Engine)


def test_prefill_gives_the_logits_of_the_last_positions(engine):
    logits = engine.prefill(0, [1, 2, 3], num_logits=2)
    np.testing.assert_array_equal(logits, [SCRIPT((1, 2)), SCRIPT((1, 2, 3))])


def test_prefill_can_give_no_logits(engine):
    assert engine.prefill(0, [1, 2], num_logits=0).shape == (0, 11)


def test_more_logits_than_tokens_are_refused(engine):
    with pytest.raises(MisuseError, match="3 positions were requested from a prefill of 2 tokens"):
        engine.prefill(0, [1, 2], num_logits=3)


def test_prefill_in_parts_is_prefill_in_one(engine):
    engine.prefill(0, [1, 2])
    np.testing.assert_array_equal(engine.prefill(0, [3]), engine.prefill(1, [1, 2, 3]))


def test_step_goes_on_from_each_slots_own_history(engine):
    engine.prefill(0, [1, 2])
    engine.prefill(1, [5])
    logits = engine.step({1: 6, 0: 3})
    np.testing.assert_array_equal(logits[0], SCRIPT((1, 2, 3)))
    np.testing.assert_array_equal(logits[1], SCRIPT((5, 6)))


def test_a_rewound_slot_forgets(engine):
    engine.prefill(0, [1, 2, 3])
    engine.cache.rewind(0, 1)
    np.testing.assert_array_equal(engine.step({0: 9})[0], SCRIPT((1, 9)))


def test_a_released_slot_begins_anew(engine):
    engine.prefill(0, [1, 2, 3])
    engine.cache.release(0)
    np.testing.assert_array_equal(engine.prefill(engine.cache.admit(), [4])[0], SCRIPT((4,)))


def test_a_token_outside_the_vocabulary_is_refused(engine):
    with pytest.raises(MisuseError, match="11"):
        engine.prefill(0, [3, 11])


def test_a_prefill_beyond_the_capacity_changes_nothing(engine):
    with pytest.raises(PromptTooLongError, match=r"9 positions.*8"):
        engine.prefill(0, [1] * 9)
    assert engine.cache.lengths[0] == 0


def test_calls_are_kept_in_order(engine):
    engine.prefill(1, (4, 5))
    engine.step({1: 6})
    assert engine.calls == [("prefill", (1, [4, 5])), ("step", {1: 6})]


def test_close_is_seen(engine):
    engine.close()
    assert engine.is_closed


@pytest.mark.parametrize("prompt_len", [1, 3, 10])
def test_saying_answers_every_prompt_of_its_length_with_its_tokens(prompt_len):
    engine = ScriptedEngine.saying([7, 8, 2], vocab_size=11, prompt_len=prompt_len)
    slot = engine.cache.admit()
    answer = [int(engine.prefill(slot, [0] * prompt_len)[0].argmax())]
    answer += [int(engine.step({slot: answer[-1]})[slot].argmax()) for _ in range(2)]
    answer.append(int(engine.step({slot: answer[-1]})[slot].argmax()))
    assert answer == [7, 8, 2, 2]
