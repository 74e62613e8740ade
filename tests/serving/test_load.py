"""Many clients at once: who leaves, who is refused, who waits; the queue is bounded and nothing is leaked."""

import json
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_model import END, history_script, ids_of, replying, said

HELLO = [{"role": "user", "content": "hi"}]
CHAT = {"model": "toy", "messages": HELLO, "temperature": 0}
ENDLESS = history_script(end=END, every=10**9)


class Gate:
    """A script that counts its steps and waits at each until it may go on."""

    def __init__(self, script=ENDLESS, *, open_=True):
        self.script, self.steps, self.open = script, 0, threading.Event()
        if open_:
            self.open.set()

    def __call__(self, history):
        assert self.open.wait(20)
        self.steps += 1
        time.sleep(0.002)
        return self.script(history)


def until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def send(server, body):
    """A request whose answer is not read yet."""
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n".encode()
    connection.sendall(head + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_costs_at_most_one_more_step(live, stream):
    gate = Gate()
    server = live(gate, num_slots=1)
    prompt = len(ids_of("<user>hi<end><bot>"))
    connection = send(server, CHAT | {"stream": stream})
    until(lambda: gate.steps > prompt + 3)
    gate.open.clear()
    connection.close()
    time.sleep(0.2)  # the event loop has seen it; the engine waits inside a step
    before = gate.steps
    gate.open.set()
    until(lambda: server.thread().num_open == 0)
    time.sleep(0.05)
    assert gate.steps <= before + 2  # the one it was in, and one more


def test_a_client_that_leaves_while_it_waits_is_never_stepped(live):
    gate = Gate(open_=False)
    server = live(gate, num_slots=1)
    first = send(server, CHAT | {"max_tokens": 3})
    until(lambda: server.thread().num_open == 1)
    second = send(server, CHAT | {"messages": [{"role": "user", "content": "no"}]})
    until(lambda: server.thread().num_open == 2)
    second.close()
    time.sleep(0.2)
    gate.open.set()
    assert first.recv(100).startswith(b"HTTP/1.1 200")
    until(lambda: server.thread().num_open == 0)
    assert gate.steps <= len(ids_of("<user>hi<end><bot>")) + 3
    first.close()


def test_a_flood_is_refused_with_429_and_what_was_accepted_is_answered(live):
    gate = Gate(replying("hello no"))
    server = live(gate, num_slots=2, settings={"max_queue_requests": 2})
    gate.open.clear()
    with ThreadPoolExecutor(20) as pool:
        answers = [pool.submit(server.request, "POST", "/v1/chat/completions", CHAT) for _ in range(20)]
        until(lambda: sum(answer.done() for answer in answers) == 16)
        gate.open.set()
        found = [answer.result() for answer in answers]
    statuses = [status for status, _, _ in found]
    assert (statuses.count(200), statuses.count(429)) == (4, 16)
    for status, headers, data in found:
        if status == 429:
            assert int(headers["retry-after"]) >= 1
            assert json.loads(data)["error"]["code"] == "rate_limit_exceeded"
    assert server.request("POST", "/v1/chat/completions", CHAT)[0] == 200
    assert b'piston:requests_refused_total{model_name="toy"} 16.0' in server.request("GET", "/metrics")[2]


def test_prompt_tokens_that_wait_are_bounded_as_well(live):
    gate = Gate(replying("hello"), open_=False)
    server = live(gate, num_slots=1, settings={"max_queue_tokens": 30, "max_queue_requests": 100})
    with ThreadPoolExecutor(8) as pool:
        answers = []
        for _ in range(8):
            answers.append(pool.submit(server.request, "POST", "/v1/chat/completions", CHAT))
            time.sleep(0.05)
        until(lambda: any(answer.done() for answer in answers))
        gate.open.set()
        statuses = [answer.result()[0] for answer in answers]
    assert set(statuses) == {200, 429}


def test_as_many_long_prompts_as_there_are_idle_rows_are_accepted_when_they_come_together(live):
    server = live(replying("hello"), num_slots=8, capacity=64)
    body = {"model": "toy", "prompt": [5] * 56, "max_tokens": 8, "temperature": 0}
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for status, _ in pool.map(lambda _: server.post("/v1/completions", body), range(8))]
    assert statuses == [200] * 8


def test_a_request_with_more_rows_than_fit_is_400(live):
    server = live(replying("x"), num_slots=1, settings={"max_queue_requests": 1})
    assert server.post("/v1/completions", {"model": "toy", "prompt": ["a", "b", "c"]})[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_a_request(live, stream):
    gate = Gate()
    server = live(gate, num_slots=1)
    status, _, data = server.request(
        "POST", "/v1/chat/completions", CHAT | {"stream": stream}, {"X-Request-Timeout": "0.3"}
    )
    assert b'"code":"timeout"' in data
    assert status == (200 if stream else 504)
    until(lambda: server.thread().num_open == 0)


def test_a_hanging_step_shows_in_health(live, monkeypatch):
    monkeypatch.setattr("piston.serving.engine_thread.STALLED", 0.05)
    gate = Gate(open_=False)
    server = live(gate, num_slots=1)
    connection = send(server, CHAT | {"max_tokens": 1})
    until(lambda: server.request("GET", "/health")[0] == 503)
    gate.open.set()
    until(lambda: server.request("GET", "/health")[0] == 200)
    connection.close()


def test_random_clients_get_what_they_would_get_alone_and_nothing_is_leaked(live):
    script = history_script(end=END, every=7)
    server = live(script, num_slots=4, settings={"max_stall": 0.001})
    draw = random.Random(3)  # noqa: S311 - a test's dice
    texts = ["hi", "hello", "no", "when hello", "w" * 30]
    expected = {text: said(script, f"<user>{text}<end><bot>", 20) for text in texts}

    def client(seed):
        dice = random.Random(seed)  # noqa: S311 - a test's dice
        text, stream = dice.choice(texts), dice.random() < 0.5
        body = CHAT | {"messages": [{"role": "user", "content": text}], "max_tokens": 20, "stream": stream}
        if dice.random() < 0.4:
            connection = send(server, body)
            time.sleep(dice.random() * 0.02)
            connection.close()
            return
        status, answer = server.post("/v1/chat/completions", body | {"logprobs": True, "stream": False})
        if status == 429:
            return
        assert status == 200
        assert answer["usage"]["completion_tokens"] == len(expected[text])
        got = [bytes(item["bytes"]) for item in answer["choices"][0]["logprobs"]["content"]]
        tokenizer = server.server.served["toy"].model.tokenizer
        assert got == [tokenizer.token_bytes(token_id) for token_id in expected[text]]

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(client, [draw.random() for _ in range(120)]))
    thread = server.thread()
    until(lambda: thread.num_open == 0)
    assert thread._rows == {}
    assert thread._inbox_tokens == 0
    cache = server.server.served["toy"].model.engine.cache
    until(lambda: cache.num_free + thread._scheduler.prefixes.num_idle == cache.num_slots)


def test_a_reader_that_is_slow_gets_everything(live):
    server = live(replying("hello no " * 20), num_slots=1)
    connection = send(server, CHAT | {"stream": True})
    data = b""
    while b"[DONE]" not in data:
        data += connection.recv(64)
    connection.close()
    texts = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    assert "".join(item["choices"][0]["delta"].get("content", "") for item in texts) == "hello no " * 20
