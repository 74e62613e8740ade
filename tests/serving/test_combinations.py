"""n, logprobs, tools, response_format and stream: every combination answers, streamed as whole."""

import itertools
import json

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
    body |= {"n": n, "logprobs": logprobs, "max_tokens": 120, "response_format": format_}
    body |= {"tools": [ADD], "tool_choice": choice} if choice else {}
    status, whole = server.post("/v1/chat/completions", body)
    if choice == "required" and format_:
        assert (status, "at once" in whole["error"]["message"]) == (400, True)
        return
    assert status == 200
    streamed = joined(server.request("POST", "/v1/chat/completions", body | {"stream": True})[2], n)
    assert len(whole["choices"]) == n
    for found, expected in zip(streamed, whole["choices"], strict=True):
        message = expected["message"]
        calls = [call["function"] for call in message.get("tool_calls", [])]
        positions = expected["logprobs"]["content"] if logprobs else []
        assert found == (message["content"] or "", calls, positions, expected["finish_reason"])
        if format_:
            assert json.loads(message["content"]) in ("yes", "no", "maybe")
        if choice == "required":
            assert expected["finish_reason"] == "length" or calls


def joined(data, n):
    rows = [["", [], [], None] for _ in range(n)]
    for line in data.decode().splitlines():
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            row, delta = rows[choice["index"]], choice["delta"]
            row[0] += delta.get("content") or ""
            for call in delta.get("tool_calls", []):
                if "id" in call:
                    row[1].append(call["function"])
                else:
                    row[1][call["index"]]["arguments"] += call["function"]["arguments"]
            row[2] += (choice["logprobs"] or {"content": []})["content"]
            row[3] = choice["finish_reason"]
    return [tuple(row) for row in rows]
