import json
import re
import threading

import llguidance
import numpy as np
import openai
import pytest
from toy_model import VOCAB_SIZE, history_script, ids_of, replying, toy_model

from piston.runtime.generate.speculation import Verification
from piston.serving import structured

LOGITS = np.zeros(VOCAB_SIZE, np.float32)

HELLO = [{"role": "user", "content": "hi"}]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 3, "maximum": 9}, "b": {"enum": ["x", "yes"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def chat(live, **fields):
    fields = {"model": "toy", "messages": HELLO, "temperature": 0, "max_tokens": 200} | fields
    return live.client.chat.completions.create(**fields).choices[0]


def scores(history):
    """A model without any sense of grammar."""
    return history_script()(history)


def test_a_schema_holds_a_model_that_knows_no_json(live):
    format_ = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}
    server = live(scores)
    for seed in range(4):
        choice = chat(server, response_format=format_, temperature=1, seed=seed)
        answer = json.loads(choice.message.content)
        assert choice.finish_reason == "stop"
        assert set(answer) == {"a", "b"}
        assert answer["a"] in range(3, 10)
        assert answer["b"] in ("x", "yes")


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({"guided_choice": ["hello", "no", "when"]}, {"hello", "no", "when"}),
        ({"structured_outputs": {"choice": ["hello", "no"]}}, {"hello", "no"}),
        ({"guided_regex": "a[bc]d"}, {"abd", "acd"}),
        ({"structured_outputs": {"grammar": 'start: "x" ("y" | "z")'}}, {"xy", "xz"}),
        ({"guided_json": {"const": 7}}, {"7"}),
    ],
)
def test_every_kind_of_constraint_holds_in_chat_and_completions(live, fields, allowed):
    server = live(scores)
    assert chat(server, extra_body=fields).message.content in allowed
    body = {"model": "toy", "prompt": "a", "temperature": 0, "max_tokens": 50} | fields
    assert server.post("/v1/completions", body)[1]["choices"][0]["text"] in allowed


def test_each_of_n_streamed_answers_follows_the_grammar(live):
    server = live(scores)
    texts = ["", "", ""]
    fields = {"n": 3, "temperature": 1, "seed": 2, "stream": True, "max_tokens": 50}
    for chunk in server.client.chat.completions.create(
        model="toy", messages=HELLO, extra_body={"guided_regex": "[ab]{6}"}, **fields
    ):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert all(len(text) == 6 and set(text) <= {"a", "b"} for text in texts)
    assert len(set(texts)) > 1


def test_json_object_gives_an_object(live):
    choice = chat(live(replying('{"no": [1, {"a": null}]}')), response_format={"type": "json_object"})
    assert json.loads(choice.message.content) == {"no": [1, {"a": None}]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "not"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"guided_regex": "(a"}, "unclosed group"),
        ({"guided_grammar": "start: nothing"}, "nothing"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag"),
        ({"guided_choice": []}, "guided_choice"),
        ({"guided_choice": ["a"], "guided_regex": "a"}, "guided_choice"),
        ({"guided_regex": "a", "ignore_eos": True}, "ignore_eos"),
        ({"guided_regex": "a" * 300_000}, "300,"),
    ],
)
def test_what_cannot_be_enforced_is_refused_by_name(live, fields, named):
    server = live(scores)
    with pytest.raises(openai.BadRequestError, match=named):
        chat(server, extra_body=fields)
    assert server.thread().num_open == 0


def test_a_grammar_above_the_limits_is_refused_and_others_go_on(live):
    server = live(scores)
    many = {"type": "object", "properties": {f"p{n}": {"type": "object"} for n in range(6000)}}
    with pytest.raises(openai.BadRequestError, match="cannot be held"):
        chat(server, extra_body={"guided_json": many})
    assert chat(server, extra_body={"guided_choice": ["hello"]}).message.content == "hello"


def test_who_sends_no_grammar_does_not_wait_for_one_that_takes_long(live, monkeypatch):
    monkeypatch.setattr(structured, "COMPILE_SECONDS", 0.05)
    go_on = threading.Event()
    monkeypatch.setattr(structured.Grammars, "compile", lambda *_: go_on.wait(10))
    server = live(replying("hello"))
    try:
        with pytest.raises(openai.BadRequestError, match="within"):
            chat(server, extra_body={"guided_choice": ["no"]})
        assert chat(server).message.content == "hello"
    finally:
        go_on.set()


def test_the_mask_is_the_grammar_s_own(live):
    # Constructed by hand: before "a" only tokens that spell a prefix of "abd" or "acd" may come.
    grammars = structured.Grammars(toy_model(scores))
    grammar = grammars.compile(llguidance.LLMatcher.grammar_from_regex("a[bc]d"))
    state = grammar.begin()
    assert np.flatnonzero(state.allowed(LOGITS)).tolist() == ids_of("a")
    state.accept(ids_of("a")[0])
    assert sorted(np.flatnonzero(state.allowed(LOGITS))) == sorted(ids_of("b") + ids_of("c"))
    behind = grammar.begin(after=ids_of("w")[0])
    assert behind.allowed(LOGITS).all()
    behind.accept(ids_of("w")[0])
    assert np.flatnonzero(behind.allowed(LOGITS)).tolist() == ids_of("a")


def test_text_that_a_schema_forces_is_verified_as_a_draft_and_is_the_same_text(live):
    schema = {
        "type": "object",
        "properties": {"hello_no_number": {"type": "integer"}, "yes_or_no": {"enum": ["yes", "no"]}},
        "required": ["hello_no_number", "yes_or_no"],
        "additionalProperties": False,
    }
    texts = []
    for limit in (0, 16):
        model = toy_model(scores)
        model.verification = Verification(limit)
        server = live(None, models=[("toy", model)])
        texts.append(chat(server, extra_body={"guided_json": schema}, max_tokens=200).message.content)
        metrics = server.request("GET", "/metrics")[2].decode()
        (accepted,) = re.findall(r"^piston:spec_decode_num_accepted_tokens_total\S* (\S+)$", metrics, re.MULTILINE)
        assert (float(accepted) > 0) == (limit > 0)  # how many are drafted depends on what a step is measured to cost
    assert texts[0] == texts[1]
    assert set(json.loads(texts[0])) == {"hello_no_number", "yes_or_no"}
