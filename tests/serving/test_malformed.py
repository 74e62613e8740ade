"""HTTP that is broken, bodies that break off, schemas that are none: one answer or a closed connection, and no harm."""

import errno
import json
import socket

import pytest
from live_server import serving
from toy_model import replying, toy_model

from piston.serving.settings import Settings

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
PATH = b"/v1/chat/completions"


@pytest.fixture(scope="module")
def server():
    with serving([("toy", toy_model(replying("hello"), num_slots=2))], Settings()) as live:
        yield live


def exchange(server, data, *, leave=False):
    """What the server answers to raw bytes, until it closes or the client has waited long enough."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        found = b""
        try:
            connection.sendall(data)
            if leave:
                return b""
            try:
                connection.shutdown(socket.SHUT_WR)
            except OSError as problem:  # the server closed the connection first
                if problem.errno != errno.ENOTCONN:
                    raise
            while piece := connection.recv(65536):
                found += piece
        except ConnectionError:  # it did not even read all
            pass
        return found


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/x\r\n\r\n",
        b"GET  /\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\nbad header\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
    ],
    ids=[
        "tls",
        "text",
        "version",
        "line",
        "length",
        "negative",
        "digits",
        "two lengths",
        "chunk",
        "long",
        "header",
        "host",
    ],
)
def test_what_is_no_http_is_400_or_a_closed_connection_and_the_server_goes_on(server, data):
    found = exchange(server, data)
    assert found == b"" or found.startswith(b"HTTP/1.1 400")
    assert server.post("/v1/chat/completions", CHAT)[0] == 200


@pytest.mark.parametrize("sent", [0, 10], ids=["no body", "half of it"])
@pytest.mark.parametrize("leave", [False, True])
def test_a_body_that_breaks_off_leaves_nothing_behind(server, sent, leave):
    body = json.dumps(CHAT).encode()
    head = b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    exchange(server, head + body[:sent], leave=leave)
    assert server.thread().num_open == 0
    assert server.post("/v1/chat/completions", CHAT)[0] == 200


def test_bodies_in_chunks_and_connections_that_are_kept_are_served(server):
    body = json.dumps(CHAT).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:7], body[7:])) + b"0\r\n\r\n"
    one = b"POST " + PATH + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(one + one)
        found = b""
        while found.count(b'"object":"chat.completion"') < 2:
            piece = connection.recv(65536)
            assert piece
            found += piece
    assert found.count(b"HTTP/1.1 200") == 2


HALF = "has the unpaired surrogate \\ud800 at character 2; it must be a string of Unicode characters."
CALL = {"type": "function", "id": "1", "function": {"name": "f", "arguments": '{"a": "b \\ud800"}'}}


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "b \ud800"}]}, "messages[0].content"),
        ("/v1/chat/completions", CHAT | {"stop": ["a", "b \ud800"]}, "stop[1]"),
        (
            "/v1/chat/completions",
            CHAT | {"messages": [*CHAT["messages"], {"role": "assistant", "content": "", "tool_calls": [CALL]}]},
            "messages[1].tool_calls[0].function.arguments.a",
        ),
        ("/v1/completions", {"prompt": ["a", "b \ud800"]}, "prompt[1]"),
        ("/v1/completions", {"prompt": "a", "b \ud800": 1}, "The name b \\ud800"),
        ("/v1/responses", {"input": "b \ud800"}, "input"),
    ],
)
def test_an_unpaired_surrogate_is_400_and_says_in_which_field_it_is(server, path, body, place):
    status, answer = server.post(path, {"model": "toy"} | body)
    assert (status, answer["error"]["message"]) == (400, f"{place} {HALF}")
    assert answer["error"]["param"] == (None if " " in place else place)


def test_a_body_that_is_not_utf_8_is_no_json(server):
    status, _, data = server.request("POST", "/v1/completions", b'{"model": "toy", "prompt": "\xff"}')
    assert (status, json.loads(data)["error"]["message"]) == (400, "The body is no JSON: Invalid UTF-8 encoded string.")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "thing"},
        {"type": ["string", 5]},
        {"properties": 5},
        {"$ref": "#/nowhere"},
        {"$ref": "http://elsewhere.example/schema"},
        {"enum": []},
        {"pattern": "("},
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"minimum": 5, "maximum": 3, "type": "integer"},
    ],
    ids=str,
)
def test_a_schema_that_is_none_or_that_nothing_meets_is_400_in_one_line(server, schema):
    status, answer = server.post("/v1/chat/completions", CHAT | {"guided_json": schema})
    assert status == 400
    assert "\n" not in answer["error"]["message"]


def test_a_schema_within_itself_ends_with_the_tokens(server):
    schema = {"$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}}, "$ref": "#/$defs/a"}
    status, answer = server.post("/v1/chat/completions", CHAT | {"guided_json": schema, "max_tokens": 20})
    assert (status, answer["usage"]["completion_tokens"] <= 20) == (200, True)
