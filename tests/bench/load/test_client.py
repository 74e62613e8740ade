"""What a client reads out of the bytes of an answer, wherever they are cut."""

import asyncio
import json
import random

import pytest

from piston.bench.load.client import Endpoint, Received, check_usable, parse
from piston.bench.load.setting import LoadRequest
from piston.core.errors import EngineError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def event(data):
    return f"data: {data if isinstance(data, str) else json.dumps(data)}\n\n".encode()


def piece(text, **more):
    return event({"choices": [{"index": 0, "text": text, **more}]})


def chunked(*bodies):
    return b"".join(b"%x\r\n%s\r\n" % (len(body), body) for body in bodies) + b"0\r\n\r\n"


USAGE = event({"choices": [], "usage": {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}})
END = piece("", finish_reason="length")


def received(parts, times=None):
    loop = asyncio.new_event_loop()
    try:
        return Received(loop.create_future(), list(parts), list(times or range(1, len(parts) + 1)))
    finally:
        loop.close()


def test_each_piece_of_text_has_the_time_at_which_its_event_was_complete():
    parts = [HEAD, *(b"%x\r\n%s\r\n" % (len(body), body) for body in (piece("a"), piece("b"), END)), chunked(USAGE)]
    found = parse(received(parts, [0.1, 0.2, 0.5, 0.6, 0.7]))
    assert (found.times, found.num_tokens, found.num_cached, found.problem) == ((0.2, 0.5), 3, 2, None)


def test_the_answer_is_the_same_wherever_it_is_cut():
    data = HEAD + chunked(b": ping\n\n", piece("a") + piece("b"), END, USAGE, event("[DONE]"))
    draw = random.Random(1)  # noqa: S311 - a test's dice
    for _ in range(200):
        cuts = sorted(draw.sample(range(1, len(data)), 6))
        parts = [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        found = parse(received(parts))
        assert (len(found.times), found.num_tokens, found.problem) == (2, 3, None)
        assert list(found.times) == sorted(found.times)
        ends = [data.index(text) + len(text) for text in (piece("a"), piece("b"))]
        expected = [next(i for i, cut in enumerate([*cuts, len(data)], 1) if cut >= end) for end in ends]
        # A chunk is one part: an event counts when it, or the rest of its chunk, is there.
        assert all(at >= least for at, least in zip(found.times, expected, strict=True))


def test_a_body_that_is_not_chunked_ends_with_the_connection():
    data = b"HTTP/1.1 200 OK\r\n\r\n" + piece("a") + USAGE
    assert parse(received([data])).times == (1,)


@pytest.mark.parametrize(("status", "is_refused"), [(429, True), (503, True), (400, False), (500, False)])
def test_only_a_server_that_has_too_much_to_do_refuses(status, is_refused):
    data = b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\nno" % status
    found = parse(received([data]))
    assert (found.is_refused, found.problem) == (is_refused, f"HTTP {status}: no")


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (event({"error": {"message": "broken"}}), "broken"),
        (event("{"), "not JSON"),
        (END + USAGE, "no text"),
        (piece("a"), "no usage"),
    ],
)
def test_a_stream_that_is_no_answer_is_a_problem(body, told):
    assert told in parse(received([HEAD + chunked(body)])).problem


def test_an_answer_that_is_no_http_is_a_problem():
    assert "not HTTP" in parse(received([b"hello"])).problem
    assert "not HTTP" in parse(received([])).problem


def test_a_wrong_number_of_tokens_is_no_measurement():
    answer = parse(received([HEAD + chunked(piece("a"), USAGE)]))
    check_usable(answer, LoadRequest(0.0, (1,), 3), "toy")
    with pytest.raises(EngineError, match="generated 3 tokens, not 4"):
        check_usable(answer, LoadRequest(0.0, (1,), 4), "toy")


def test_the_request_goes_below_the_path_of_the_url_with_the_key():
    text = Endpoint(url="http://host:81/api/v1", model="m", api_key="secret").request(b"{}").decode()
    assert text.startswith("POST /api/v1/completions HTTP/1.1\r\nHost: host:81\r\n")
    assert "\r\nAuthorization: Bearer secret\r\n" in text
    assert Endpoint(url="https://host", model="m").address[1:2] == (443,)


@pytest.mark.parametrize("size", [b"zz", b"-5", b"0x1f", b"", b"1" * 40])
def test_a_chunk_whose_size_is_no_number_is_a_problem_and_no_error(size):
    answer = parse(received([HEAD + size + b"\r\nhello\r\n"]))
    assert "which is no hexadecimal number" in answer.problem
