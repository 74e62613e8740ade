import json

import openai
import pytest
from live_server import serving
from toy_model import ids_of, replying, toy_model

from piston.serving.settings import Settings

HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "toy", "messages": HELLO, "temperature": 0}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'"text"',
        b'{"a":' * 2000,
        b'{"model": "toy", "messages": [' + b"[" * 5000,
    ],
    ids=["empty", "open", "list", "null", "bytes", "text", "deep", "deeper"],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_what_is_no_request_is_400_in_openais_shape(shared, path, body):
    status, headers, data = shared.request("POST", path, body)
    error = json.loads(data)["error"]
    assert status == 400
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages[0]"),
        ({"messages": "hi"}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream_options": {"include_all": True}}, "stream_options"),
        ({"logit_bias": {"x": 1}}, None),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"suffix": "x"}, "suffix"),
        ({"store": True}, "store"),
        ({"chat_template": "x"}, "chat_template"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"best_of": 3}, "best_of"),
        ({"request_id": "a\nb"}, "request_id"),
    ],
)
def test_a_wrong_field_is_named(shared, fields, param):
    status, answer = shared.post("/v1/chat/completions", CHAT | fields)
    assert (status, answer["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "fields",
    [{"store": False}, {"service_tier": "auto"}, {"tools": None}, {"audio": None}, {"best_of": 1}, {"user": "me"}],
)
def test_a_field_that_asks_for_nothing_is_accepted(shared, fields):
    assert shared.post("/v1/chat/completions", CHAT | fields)[0] == 200


def test_a_prompt_that_does_not_fit_is_400_with_numbers(shared):
    status, answer = shared.post("/v1/chat/completions", CHAT | {"max_tokens": 10_000})
    assert status == 400
    assert "10,000" in answer["error"]["message"]


def test_another_model_is_404(shared):
    with pytest.raises(openai.NotFoundError) as problem:
        shared.client.chat.completions.create(model="gpt", messages=HELLO)
    assert problem.value.code == "model_not_found"
    assert shared.request("GET", "/v1/models/gpt")[0] == 404


@pytest.mark.parametrize(
    ("verb", "path", "status"), [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405)]
)
def test_a_wrong_path_or_verb_has_openais_shape_too(shared, verb, path, status):
    got, _, data = shared.request(verb, path)
    assert (got, set(json.loads(data)["error"])) == (status, {"message", "type", "param", "code"})


def test_a_body_that_is_too_large_is_413(live):
    server = live(replying("x"), settings={"max_body": 100})
    assert server.request("POST", "/tokenize", b"x" * 101)[0] == 413


def test_lenient_ignores_and_says_so(live):
    server = live(replying("hello"), settings={"lenient": True})
    status, headers, _ = server.request("POST", "/v1/chat/completions", CHAT | {"mood": 1, "store": True})
    assert (status, headers["x-piston-ignored-fields"]) == (200, "mood, store")


def test_an_error_in_mid_stream_is_an_event(live):
    def script(history):
        if len(history) > len(ids_of("<user>hi<end><bot>")) + 1:
            raise ValueError("secret of the machine")
        return replying("hello no")(history)

    server = live(script)
    with pytest.raises(openai.APIError, match="engine failed") as problem:
        list(server.client.chat.completions.create(**CHAT, stream=True))
    assert "secret" not in str(problem.value)
    status, _, data = server.request("POST", "/v1/chat/completions", CHAT)
    assert status == 500
    assert b"secret" not in data


def test_one_request_s_failure_ends_that_request_alone(live):
    bad = ids_of("<user>no<end><bot>")

    def script(history):
        if history[: len(bad)] == tuple(bad):
            raise ValueError("bad")
        return replying("hello")(history)

    server = live(script)
    status, _ = server.post("/v1/chat/completions", CHAT | {"messages": [{"role": "user", "content": "no"}]})
    assert status == 500
    assert server.post("/v1/chat/completions", CHAT)[0] == 200
    assert server.request("GET", "/health")[0] == 200


def test_keys_are_asked_for_everywhere_but_where_probes_look(live):
    server = live(replying("hello"), settings={"api_keys": ("one", "two")})
    for path in ("/v1/models", "/metrics", "/version", "/nothing"):
        status, headers, data = server.request("GET", path)
        assert (status, headers["www-authenticate"]) == (401, "Bearer")
        assert json.loads(data)["error"]["type"] == "authentication_error"
        assert server.request("GET", path, headers={"Authorization": "Bearer three"})[0] == 401
    assert server.request("GET", "/health")[0] == server.request("GET", "/ready")[0] == 200
    assert server.request("GET", "/metrics", headers={"Authorization": "Bearer two"})[0] == 200


def test_what_one_key_cached_another_does_not_see(live):
    server = live(replying("hello"), settings={"api_keys": ("one", "two")})
    cached = []
    for key in ("one", "two", "one"):
        _, answer = server.post("/v1/chat/completions", CHAT, {"Authorization": f"Bearer {key}"})
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert cached == [0, 0, len(ids_of("<user>hi<end><bot>")) - 1]


def test_no_origin_is_allowed(shared):
    _, headers, _ = shared.request("GET", "/v1/models", headers={"Origin": "http://evil.example"})
    assert not [name for name in headers if name.lower().startswith("access-control")]


def test_without_a_template_a_chat_is_refused(live):
    server = live(None, models=[("toy", toy_model(replying("x"), template=None))])
    status, answer = server.post("/v1/chat/completions", CHAT)
    assert status == 400
    assert "chat template" in answer["error"]["message"]


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "nan", "inf"])
def test_a_deadline_that_is_none_is_refused(shared, seconds):
    assert shared.post("/v1/chat/completions", CHAT, {"X-Request-Timeout": seconds})[0] == 400


@pytest.fixture(scope="module")
def shared():
    with serving([("toy", toy_model(replying("hello"), num_slots=2))], Settings()) as server:
        yield server
