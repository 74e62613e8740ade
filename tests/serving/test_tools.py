import json

import openai
import pytest
from tool_template import ADD, TEMPLATE
from toy_model import history_script, replying, toy_model

HELLO = [{"role": "user", "content": "hi"}]
NOTHING = {"type": "object", "additionalProperties": False}
SUB = {"type": "function", "function": {"name": "sub", "parameters": NOTHING}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def start(live):
    return lambda script: live(script, models=[("toy", toy_model(script, num_slots=4, template=TEMPLATE))])


def chat(server, **fields):
    fields = {"model": "toy", "messages": HELLO, "temperature": 0, "tools": [ADD]} | fields
    return server.client.chat.completions.create(**fields)


def test_a_call_is_found_and_is_the_reason(start):
    (choice,) = chat(start(replying(f"<think>why</think>so {CALL}"))).choices
    assert choice.message.content == "so"
    assert choice.message.reasoning == choice.message.reasoning_content == "why"
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name, call.function.arguments) == ("function", "add", '{"a": 1}')
    assert choice.finish_reason == "tool_calls"


def test_streamed_calls_are_those_of_the_whole_answer(start):
    server = start(replying(f"no {CALL}\n{CALL}"))
    whole = chat(server).choices[0].message
    calls, content, reasons = {}, "", []
    for chunk in chat(server, stream=True):
        (choice,) = chunk.choices
        content += choice.delta.content or ""
        reasons.append(choice.finish_reason)
        for call in choice.delta.tool_calls or []:
            known = calls.setdefault(call.index, {"name": "", "arguments": ""})
            known["id"] = call.id or known["id"]
            known["name"] += call.function.name or ""
            known["arguments"] += call.function.arguments
            known["pieces"] = known.get("pieces", 0) + 1
            assert (call.id is None) == (call.function.name is None) == (call.type is None) == (known["pieces"] > 1)
    assert all(call["pieces"] > 3 for call in calls.values())
    assert content == whole.content == "no"
    assert [call.function.arguments for call in whole.tool_calls] == [call["arguments"] for call in calls.values()]
    assert sorted(calls) == [0, 1]
    assert calls[0]["id"] != calls[1]["id"]
    assert reasons[-1] == "tool_calls"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_demanded_call_is_made_by_a_model_that_knows_none(start, choice):
    answer = chat(start(history_script()), tool_choice=choice, tools=[ADD, SUB], max_tokens=300, temperature=1, seed=4)
    calls = answer.choices[0].message.tool_calls
    assert calls
    for call in calls:
        arguments = json.loads(call.function.arguments)
        if call.function.name == "add":
            assert set(arguments) == {"a"}
            assert isinstance(arguments["a"], int)


def test_strict_arguments_are_held_to_their_schema_where_calls_are_free(start):
    strict = {"type": "function", "function": ADD["function"] | {"strict": True}}
    wrong = '<tool_call>\n{"name": "add", "arguments": {"b": 1}}\n</tool_call>'
    (free,) = chat(start(replying(wrong))).choices
    assert json.loads(free.message.tool_calls[0].function.arguments) == {"b": 1}
    (held,) = chat(start(replying(wrong)), tools=[strict], max_tokens=100).choices
    assert '"b"' not in json.dumps(held.message.model_dump())


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_without_parallel_calls_there_is_one_and_nothing_behind_it(start, choice):
    server = start(replying(f"no {CALL}\n{CALL} w"))
    (many,) = chat(server).choices
    assert len(many.message.tool_calls) == 2
    (one,) = chat(server, tool_choice=choice, parallel_tool_calls=False, max_tokens=300).choices
    assert (len(one.message.tool_calls), one.finish_reason) == (1, "tool_calls")
    assert (one.message.content or "") == ("no" if choice == "auto" else "")


def test_without_parallel_calls_an_answer_may_be_text(start):
    (choice,) = chat(start(replying("hello")), parallel_tool_calls=False).choices
    assert (choice.message.content, choice.message.tool_calls) == ("hello", None)


def test_without_tool_choice_none_the_template_sees_the_functions(start):
    server = start(replying("hello"))
    with_tools = chat(server).usage.prompt_tokens
    assert chat(server, tool_choice="none").usage.prompt_tokens == with_tools - len("add;")


def test_calls_of_earlier_turns_reach_the_template_as_objects(start):
    server = start(replying("hello"))
    call = {"id": "x", "type": "function", "function": {"name": "add", "arguments": '{"a": 123}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "x", "content": "5"},
    ]
    _, answer = server.post("/tokenize", {"messages": messages})
    _, text = server.post("/detokenize", {"tokens": answer["tokens"]})
    assert "<tool_call>123</tool_call>" in text["prompt"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "mul"}}}, "mul"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [{"type": "web"}]}, "tools"),
        ({"tools": [], "tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": "required", "response_format": {"type": "json_object"}}, "at once"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(start, fields, named):
    server = start(replying("hello"))
    with pytest.raises(openai.BadRequestError, match=named):
        chat(server, **fields)


def test_a_template_without_calls_refuses_tools(live):
    with pytest.raises(openai.BadRequestError, match="chat template"):
        chat(live(replying("hello")))
