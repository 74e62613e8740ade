"""n, logprobs, tools, response_format and stream through the official client: every combination, streamed as whole."""

import itertools
import json

import openai
import pytest
from live_server import serving
from tool_template import ADD, TEMPLATE
from toy_model import history_script, toy_model

from piston.serving.settings import Settings

FORMAT = {"type": "json_schema", "json_schema": {"schema": {"enum": ["yes", "no", "maybe"]}}}
OPTIONS = {
    "n": [1, 2],
    "logprobs": [False, True],
    "tools": [None, "auto", "required"],
    "response_format": [None, FORMAT],
}


@pytest.fixture(scope="module")
def server():
    with serving([("toy", toy_model(history_script(), num_slots=4, template=TEMPLATE))], Settings()) as live:
        yield live


@pytest.mark.parametrize("values", list(itertools.product(*OPTIONS.values())), ids=str)
def test_streamed_and_whole_are_the_same_in_every_combination(server, values):
    n, logprobs, choice, format_ = values
    body = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 1, "seed": 7}
    body |= {"n": n, "logprobs": logprobs, "max_tokens": 120} | ({"response_format": format_} if format_ else {})
    body |= {"tools": [ADD], "tool_choice": choice} if choice else {}
    if choice == "required" and format_:
        with pytest.raises(openai.BadRequestError, match="at once"):
            server.client.chat.completions.create(**body)
        return
    whole = server.client.chat.completions.create(**body)
    streamed = joined(server.client.chat.completions.create(**body, stream=True), n)
    assert len(whole.choices) == n
    for found, expected in zip(streamed, whole.choices, strict=True):
        message = expected.message
        calls = [(call.function.name, call.function.arguments) for call in message.tool_calls or []]
        positions = expected.logprobs.content if logprobs else []
        assert found == [message.content or "", calls, positions, expected.finish_reason]
        if format_:
            assert json.loads(message.content) in ("yes", "no", "maybe")
        if choice == "required":
            assert expected.finish_reason == "length" or calls


def joined(chunks, n):
    rows = [["", [], [], None] for _ in range(n)]
    for chunk in chunks:
        for choice in chunk.choices:
            row, delta = rows[choice.index], choice.delta
            assert row[3] is None  # nothing comes behind the reason
            row[0] += delta.content or ""
            for call in delta.tool_calls or []:
                name, arguments = row[1].pop() if call.id is None else (call.function.name, "")
                row[1].append((name, arguments + call.function.arguments))
            row[2] += choice.logprobs.content if choice.logprobs else []
            row[3] = choice.finish_reason
    return rows
