import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from piston.serving.output_parser import HERMES, MISTRAL, Markers, OutputParser
from piston.serving.tool_call_parser import Part

BOTH = Markers(thinks=True, tools=HERMES)
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "</tool>"}}\n</tool_call>'


def parsed(pieces, markers, **keywords):
    """Parts in their order, pieces of one kind joined."""
    parser = OutputParser(markers, **keywords)
    parts = [part for piece in pieces for part in parser.push(piece)] + parser.flush()
    joined = []
    for part in parts:
        if part.kind == "tool_arguments" or (joined and part.kind == joined[-1].kind != "tool_call"):
            joined[-1] = Part(joined[-1].kind, joined[-1].text + part.text, joined[-1].name)
        else:
            joined.append(part)
    return joined


TEXTS = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<tool_call>",
            "</tool_call>",
            CALL,
            "[TOOL_CALLS]",
            '[{"name":"f"}]',
            " ",
            "\n",
            '{"name": "g", "arguments": ',
            '{"name": "</tool_call>", "arguments": ',
            '{"arguments": {"name": "x"}, "name": "h"}',
            '{"b": ["}", "\\\\", {"c": 1}]}',
            ', "id": "7"}',
            "}",
            "[",
            "]",
            ",",
            "a",
            "<",
            "<t",
            "no ",
        ]
    ),
    max_size=8,
).map("".join)


@settings(max_examples=300, deadline=None)
@given(
    text=TEXTS,
    cuts=st.lists(st.integers(0, 200), max_size=12),
    markers=st.sampled_from([BOTH, Markers(), Markers(thinks=True), Markers(tools=HERMES), Markers(tools=MISTRAL)]),
    is_thinking=st.booleans(),
)
def test_any_cut_of_a_text_gives_what_the_whole_gives(text, cuts, markers, is_thinking):
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[start:stop] for start, stop in itertools.pairwise(places)]
    keywords = {"is_thinking": is_thinking and markers.thinks, "tools": True}
    assert parsed(pieces, markers, **keywords) == parsed([text], markers, **keywords)
    assert parsed(list(text), markers, **keywords) == parsed([text], markers, **keywords)


def test_reasoning_content_and_calls_are_told_apart():
    text = f"<think>\nwhy\n</think>\n\nhello\n{CALL}\n{CALL}"
    reasoning, content, *calls = parsed([text], BOTH, tools=True)
    assert (reasoning, content) == (Part("reasoning", "why"), Part("content", "hello"))
    assert [call.name for call in calls] == ["add", "add"]
    assert json.loads(calls[0].text) == {"a": 1, "b": "</tool>"}


def test_the_template_may_have_begun_the_reasoning():
    parts = parsed(["why</think>hello"], BOTH, is_thinking=True)
    assert parts == [Part("reasoning", "why"), Part("content", "hello")]


def test_a_marker_inside_an_answer_is_no_reasoning():
    assert parsed(["a <think> b"], BOTH) == [Part("content", "a <think> b")]


@pytest.mark.parametrize("body", ["no json", '{"name": 1}', '{"arguments": {}}', "[1]", ""])
def test_what_is_no_call_is_content_and_nothing_is_lost(body):
    text = f"<tool_call>{body}</tool_call>"
    assert parsed([text], BOTH, tools=True) == [Part("content", text)]


def test_an_unfinished_call_is_content():
    text = 'a<tool_call>{"name": "f"'
    assert parsed([text], BOTH, tools=True) == [Part("content", text)]


def test_arguments_come_as_they_are_written():
    parser = OutputParser(BOTH, tools=True)
    pieces = ['<tool_call>{"name": "f", "arguments"', ': {"te', 'xt": "a}', '"', "}", "}", "</tool_call> so"]
    assert [parser.push(piece) for piece in pieces] == [
        [],
        [Part("tool_call", "", "f"), Part("tool_arguments", '{"te')],
        [Part("tool_arguments", 'xt": "a}')],
        [Part("tool_arguments", '"')],
        [Part("tool_arguments", "}")],
        [],
        [Part("content", "so")],
    ]


def test_a_call_that_breaks_off_in_its_arguments_has_those_that_came():
    assert parsed(['<tool_call>{"name": "f", "arguments": {"a": 1'], BOTH, tools=True) == [
        Part("tool_call", '{"a": 1', "f")
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ('{"arguments": {"a": 1}, "name": "f"}', [("f", '{"a":1}')]),
        ('{"name": "f", "arguments": "{}"}', [("f", "{}")]),
        ('{"name": "f"}', [("f", "{}")]),
        ('{"name": "f\\u0041", "parameters": {"a":  1}, "id": "x"}', [("fA", '{"a":  1}')]),
        ('[{"name": "f", "arguments": {}}, {"arguments": {"b": 2}, "name": "g"}]', [("f", "{}"), ("g", '{"b":2}')]),
        ('{"name": "f", "arguments": {"a": "</tool_call>"}}', [("f", '{"a": "</tool_call>"}')]),
    ],
)
def test_every_form_of_a_call_is_understood(body, expected):
    parts = parsed([f"<tool_call>\n{body}\n</tool_call>\n hello"], BOTH, tools=True)
    assert [(part.name, part.text) for part in parts[:-1]] == expected
    assert parts[-1] == Part("content", "hello")


def test_without_tools_a_call_is_content():
    assert parsed([CALL], BOTH) == [Part("content", CALL)]


def test_a_list_of_calls_reaches_to_the_end():
    text = '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 2}}, {"name": "g", "arguments": {}}]'
    parts = parsed([text], Markers(tools=MISTRAL), tools=True)
    assert [(part.kind, part.name, part.text) for part in parts] == [
        ("tool_call", "f", '{"x": 2}'),
        ("tool_call", "g", "{}"),
    ]


def test_text_without_markers_passes_at_once():
    parser = OutputParser(Markers())
    assert parser.push("a <th ") == [Part("content", "a <th ")]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages }}", Markers()),
        ("{% if x %}</think>{% endif %}", Markers(thinks=True)),
        ("<tool_call>{{ tool_call.name }}</tool_call>", Markers(tools=HERMES)),
        ("<tool_call><function={{ name }}>", Markers()),
        ("[TOOL_CALLS]{{ calls }}", Markers(tools=MISTRAL)),
        ("[TOOL_CALLS]name[ARGS]{}", Markers()),
    ],
)
def test_markers_are_those_the_template_names(template, expected):
    assert Markers.of(template) == expected
