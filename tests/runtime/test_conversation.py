import itertools
import sys

import pytest
from toy_model import CHAT, END, history_script, ids_of, replying, toy_model

from piston.core.errors import EngineError, MisuseError, PromptTooLongError, TemplateError
from piston.runtime import conversation as conversation_module
from piston.runtime.sampling.params import SamplingParams

FORGETFUL = (  # shows only the last answer's first letter, as templates drop earlier reasoning
    "{% for m in messages %}<{{ 'bot' if m.role == 'assistant' else m.role }}>"
    "{{ m.content if loop.last or m.role != 'assistant' else m.content[:1] }}<end>{% endfor %}<bot>"
)
CHOOSY = "{% if messages|length > 2 %}{{ raise_exception('too many turns') }}{% endif %}" + CHAT
HISTORY = history_script(end=END, every=8)
TALK = ["hi", "and then?", "é👍", "no no"]


def say(conversation, text):
    return "".join(conversation.say(text))


def prefills(model):
    return [len(call[1]) for kind, call in model.engine.calls if kind == "prefill"]


def test_an_answer_is_streamed_in_pieces():
    conversation = toy_model(replying("hello you")).conversation()
    assert "".join(list(conversation.say("hi"))) == "hello you"


def test_messages_hold_both_sides():
    conversation = toy_model(replying("hello")).conversation("be brief")
    say(conversation, "hi")
    assert conversation.messages == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "hello"},
    ]


def test_the_next_turn_prefills_exactly_the_new_tokens():
    model = toy_model(replying("hello"))
    conversation = model.conversation()
    say(conversation, "hi")
    say(conversation, "more")
    assert prefills(model) == [len(ids_of("<user>hi<end><bot>")), len(ids_of("<end><user>more<end><bot>"))]
    assert conversation.completion.num_prefilled_tokens == prefills(model)[1]


@pytest.mark.parametrize("template", [CHAT, FORGETFUL])
def test_a_cached_conversation_gives_the_tokens_of_one_rendered_from_scratch(template):
    model = toy_model(HISTORY, template=template)
    sampling = SamplingParams(max_tokens=12)
    with model.conversation(sampling=sampling) as conversation:
        for text in TALK:
            so_far = [*conversation.messages, {"role": "user", "content": text}]
            say(conversation, text)
            fresh = toy_model(HISTORY, template=template).chat(so_far, sampling)
            assert conversation.completion.token_ids == fresh.token_ids
    assert prefills(model)[1:] != []


def test_the_cache_is_really_reused_by_a_template_that_rewrites():
    model = toy_model(replying("a long answer"), template=FORGETFUL)
    conversation = model.conversation("a rather long system message")
    say(conversation, "hi")
    say(conversation, "more")
    assert prefills(model)[1] < prefills(model)[0]


def test_a_message_that_is_too_long_is_taken_back():
    model = toy_model(replying("ok"), capacity=60)
    conversation = model.conversation(sampling=SamplingParams(max_tokens=8))
    say(conversation, "hi")
    before = list(conversation.messages)
    with pytest.raises(PromptTooLongError):
        say(conversation, "x" * 80)
    assert conversation.messages == before
    assert say(conversation, "y") == "ok"


def test_a_message_that_the_template_refuses_is_taken_back():
    conversation = toy_model(replying("ok"), template=CHOOSY).conversation()
    say(conversation, "hi")
    with pytest.raises(TemplateError, match="too many turns"):
        say(conversation, "again")
    assert len(conversation.messages) == 2


def test_a_message_whose_answer_never_began_is_taken_back():
    def script(history):
        raise EngineError("the device is gone")

    conversation = toy_model(script).conversation()
    with pytest.raises(EngineError):
        say(conversation, "hi")
    assert conversation.messages == []


def test_closing_the_iterator_keeps_what_was_said():
    conversation = toy_model(replying("hello, world")).conversation()
    pieces = conversation.say("hi")
    heard = "".join(itertools.islice(pieces, 3))
    pieces.close()
    assert conversation.messages[-1] == {"role": "assistant", "content": heard}
    assert conversation.completion.finish_reason is None


@pytest.mark.parametrize("heard", [1, 2, 5])
def test_a_conversation_goes_on_rightly_after_an_interrupt(heard):
    model = toy_model(HISTORY)
    sampling = SamplingParams(max_tokens=12, ignore_eos=True)
    conversation = model.conversation(sampling=sampling)
    pieces = conversation.say("hi")
    list(itertools.islice(pieces, heard))
    pieces.close()
    so_far = [*conversation.messages, {"role": "user", "content": "go on"}]
    say(conversation, "go on")
    assert conversation.completion.token_ids == toy_model(HISTORY).chat(so_far, sampling).token_ids


def test_a_keyboard_interrupt_in_the_engine_keeps_what_was_said():
    reply = replying("hello, world")
    steps = itertools.count()

    def script(history):
        if next(steps) == 8:
            raise KeyboardInterrupt
        return reply(history)

    conversation = toy_model(script).conversation()
    heard = []
    with pytest.raises(KeyboardInterrupt):
        heard.extend(conversation.say("hi"))
    assert "hello, world".startswith(conversation.messages[-1]["content"])
    assert conversation.messages[-1]["content"]
    assert say(conversation, "more") == "hello, world"


def test_a_stop_string_leaves_no_trace_of_what_it_cut():
    model = toy_model(HISTORY)
    sampling = SamplingParams(max_tokens=12, stop="e", ignore_eos=True)
    conversation = model.conversation(sampling=sampling)
    for text in TALK:
        so_far = [*conversation.messages, {"role": "user", "content": text}]
        say(conversation, text)
        assert conversation.completion.token_ids == toy_model(HISTORY).chat(so_far, sampling).token_ids


def test_a_conversation_holds_one_slot_until_it_is_closed():
    model = toy_model(replying("ok"), num_slots=2)
    with model.conversation() as conversation:
        say(conversation, "hi")
        assert model.engine.cache.num_free == 1
    assert model.engine.cache.num_free == 2


def test_a_conversation_may_be_closed_twice():
    model = toy_model(replying("ok"))
    with model.conversation() as conversation:
        conversation.close()
    assert model.engine.cache.num_free == 1


def test_a_closed_conversation_says_no_more():
    model = toy_model(replying("ok"))
    conversation = model.conversation()
    conversation.close()
    with pytest.raises(MisuseError):
        say(conversation, "hi")
    assert model.engine.cache.num_free == 1


def test_closing_during_an_answer_frees_the_slot():
    model = toy_model(replying("hello"))
    conversation = model.conversation()
    pieces = conversation.say("hi")
    next(pieces)
    conversation.close()
    pieces.close()
    assert model.engine.cache.num_free == 1


def roles(conversation):
    return [message["role"] for message in conversation.messages]


def test_a_second_message_is_refused_while_an_answer_is_being_streamed():
    conversation = toy_model(replying("hello you")).conversation()
    first = conversation.say("one")
    heard = next(first)
    with pytest.raises(MisuseError, match="still being streamed"):
        say(conversation, "two")
    assert heard + "".join(first) == "hello you"
    assert say(conversation, "three") == "hello you"
    assert [message["content"] for message in conversation.messages] == ["one", "hello you", "three", "hello you"]


@pytest.mark.parametrize("end", [lambda pieces: pieces.close(), lambda pieces: None])
def test_an_answer_that_was_closed_or_forgotten_makes_way_for_the_next_message(end):
    model = toy_model(HISTORY)
    conversation = model.conversation(sampling=SamplingParams(max_tokens=12, ignore_eos=True))
    pieces = conversation.say("one")
    next(pieces)
    end(pieces)
    del pieces
    so_far = [*conversation.messages, {"role": "user", "content": "two"}]
    say(conversation, "two")
    assert roles(conversation) == ["user", "assistant"] * 2
    assert conversation.completion.token_ids == toy_model(HISTORY).chat(so_far, conversation.sampling).token_ids


def test_an_answer_that_nobody_began_to_read_leaves_no_trace():
    conversation = toy_model(replying("ok")).conversation()
    unread = conversation.say("one")
    assert say(conversation, "two") == "ok"
    del unread
    assert [message["content"] for message in conversation.messages] == ["two", "ok"]


def test_closing_the_conversation_ends_the_answer_that_is_being_streamed():
    model, sampling = toy_model(HISTORY), SamplingParams(max_tokens=12, ignore_eos=True)
    conversation = model.conversation(sampling=sampling)
    pieces = conversation.say("hi")
    heard = next(pieces)
    conversation.close()
    with model.conversation(sampling=sampling):
        assert list(pieces) == []  # it must not write into the slot that is another's now
    assert conversation.messages[-1] == {"role": "assistant", "content": heard}


@pytest.mark.parametrize(
    "step",
    [
        "model.LanguageModel.render",
        "model.LanguageModel.prepare",
        "backends.kv_cache.KVCache.rewind",
        "generate.scheduler.Scheduler._prefill",
    ],
)
def test_an_interrupt_before_the_answer_leaves_no_message(step, monkeypatch):
    model = toy_model(HISTORY)
    conversation = model.conversation(sampling=SamplingParams(max_tokens=12))
    say(conversation, "one")
    before = list(conversation.messages)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"piston.runtime.{step}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            say(conversation, "two")
    assert conversation.messages == before
    so_far = [*before, {"role": "user", "content": "three"}]
    say(conversation, "three")
    assert conversation.completion.token_ids == toy_model(HISTORY).chat(so_far, conversation.sampling).token_ids


def interrupting(line):
    """A trace function that interrupts `say`, and what it calls in its module, before its line number `line`."""
    lines = itertools.count()

    def trace(frame, event, _):
        if frame.f_code.co_filename != conversation_module.__file__:
            return None
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    return trace


def test_an_interrupt_before_any_line_leaves_the_conversation_whole():
    sampling = SamplingParams(max_tokens=2, ignore_eos=True)
    fresh = toy_model(HISTORY)
    for line in itertools.count():
        conversation = toy_model(HISTORY).conversation(sampling=sampling)
        say(conversation, "one")
        before, interrupted = sys.gettrace(), False
        sys.settrace(interrupting(line))
        try:
            say(conversation, "two")
        except KeyboardInterrupt:
            interrupted = True
        finally:
            sys.settrace(before)
        assert roles(conversation) == ["user", "assistant"] * (len(conversation.messages) // 2)
        so_far = [*conversation.messages, {"role": "user", "content": "three"}]
        say(conversation, "three")
        assert conversation.completion.token_ids == fresh.chat(so_far, sampling).token_ids
        if not interrupted:
            break
    assert line > 30


def test_two_conversations_take_turns_without_mixing():
    model = toy_model(HISTORY, num_slots=2)
    sampling = SamplingParams(max_tokens=10)
    both = [model.conversation(sampling=sampling), model.conversation(sampling=sampling)]
    answers = [[say(conversation, text) for conversation in both] for text in TALK]
    alone = toy_model(HISTORY).conversation(sampling=sampling)
    assert answers == [[answer, answer] for answer in (say(alone, text) for text in TALK)]


@pytest.mark.parametrize("sampling", [SamplingParams(n=2, temperature=1.0), SamplingParams(echo=True)])
def test_options_without_meaning_in_a_conversation_are_refused(sampling):
    model = toy_model(replying("ok"))
    with pytest.raises(MisuseError, match=r"conversation"):
        model.conversation(sampling=sampling)
    assert model.engine.cache.num_free == 1


def test_a_conversation_without_a_template_is_refused_at_the_first_message():
    conversation = toy_model(replying("ok"), template=None).conversation()
    with pytest.raises(TemplateError):
        say(conversation, "hi")
    assert conversation.messages == []


def test_the_scripts_answers_are_spelt_anew_when_they_are_rendered():
    # Else the comparisons above would never rewind: bytes that are no UTF-8 come back as other tokens.
    conversation = toy_model(HISTORY).conversation(sampling=SamplingParams(max_tokens=12))
    assert any("\ufffd" in say(conversation, text) for text in TALK)


@pytest.mark.parametrize("script", [HISTORY, replying("no no no no hello hello")])
def test_a_conversation_with_guesses_says_the_same_turn_by_turn(script, monkeypatch):
    monkeypatch.setattr("piston.runtime.generate.speculation.StepCost.observe", lambda *_: None)  # no clock in a test
    answers = {}
    for limit in (0, 12):
        model = toy_model(script)
        with model.conversation(sampling=SamplingParams(max_tokens=40, prompt_lookup_num_tokens=limit)) as conversation:
            answers[limit] = [(say(conversation, text), conversation.completion.token_ids) for text in TALK]
        assert model.engine.cache.num_free == 1
    assert answers[12] == answers[0]
