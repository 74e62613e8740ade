"""/v1/embeddings over a session whose vectors can be told by hand: [tokens, sum of ids, 2] of each text."""

import base64
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest
from embedded import CLS, MAX_LENGTH, SEP, WORDS, embedder
from toy_model import replying, toy_model

A, B = WORDS.index("a"), WORDS.index("b")


@pytest.fixture
def server(live):
    return live(None, models=[("embed", embedder(prompts={"query": "query: "}, normalized=False))])


def vectors(server, given, **fields):
    answer = server.client.embeddings.create(**({"model": "embed", "encoding_format": "float"} | fields), input=given)
    assert [item.index for item in answer.data] == list(range(len(answer.data)))
    return [item.embedding for item in answer.data], answer.usage


@pytest.mark.parametrize(
    ("given", "expected", "num_tokens"),
    [
        ("a b", [[4, A + B + SEP, 2]], 4),
        (["a", "a b"], [[3, A + SEP, 2], [4, A + B + SEP, 2]], 7),
        ([CLS, A, SEP], [[3, A + SEP, 2]], 3),
        ([[CLS, A, SEP], [B]], [[3, A + SEP, 2], [1, B, 2]], 4),
    ],
    ids=["text", "texts", "ids", "lists of ids"],
)
def test_texts_and_ids_are_embedded_in_their_order_with_usage(server, given, expected, num_tokens):
    found, usage = vectors(server, given)
    assert found == expected
    assert (usage.prompt_tokens, usage.total_tokens) == (num_tokens, num_tokens)


def test_base64_is_the_bytes_of_float32_and_what_the_official_client_asks_for_by_itself(server):
    assert server.client.embeddings.create(model="embed", input="a b").data[0].embedding == [4, A + B + SEP, 2]
    status, answer = server.post("/v1/embeddings", {"model": "embed", "input": "a b", "encoding_format": "base64"})
    data = base64.b64decode(answer["data"][0]["embedding"])
    assert (status, np.frombuffer(data, "<f4").tolist()) == (200, [4, A + B + SEP, 2])


def test_dimensions_are_the_first_numbers_of_length_1_where_the_model_has_that(live):
    assert vectors(live(None, models=[("embed", embedder())]), "a b", dimensions=2)[0] == [[4, A + B + SEP]]
    (found,), _ = vectors(live(None, models=[("embed", embedder(normalized=True))]), "a b", dimensions=2)
    assert np.hypot(*found) == pytest.approx(1)
    assert found[1] / found[0] == pytest.approx((A + B + SEP) / 4)


def test_a_prompt_of_the_checkpoint_goes_in_front_by_name(server):
    assert vectors(server, "a", extra_body={"prompt_name": "query"})[0] == vectors(server, "query: a")[0]


LONG = " ".join("abcdefg")
LONG_IDS = [A] * (MAX_LENGTH + 1)


@pytest.mark.parametrize(("given", "num"), [(LONG, 9), (["a", LONG], 9), (LONG_IDS, MAX_LENGTH + 1)])
def test_what_is_too_long_is_400_with_the_numbers_and_nothing_is_cut_without_a_word(server, given, num):
    with pytest.raises(openai.BadRequestError, match=f"has {num} tokens; .* up to {MAX_LENGTH}"):
        vectors(server, given)


def test_truncate_prompt_tokens_cuts_the_end_and_usage_counts_what_was_embedded(server):
    found, usage = vectors(server, LONG, extra_body={"truncate_prompt_tokens": -1})
    assert (found[0][0], usage.prompt_tokens) == (MAX_LENGTH, MAX_LENGTH)
    found, _ = vectors(server, LONG, extra_body={"truncate_prompt_tokens": 4})
    assert found == [[4, A + B + SEP, 2]]
    found, _ = vectors(server, LONG_IDS, extra_body={"truncate_prompt_tokens": 2})
    assert found == [[2, 2 * A, 2]]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"input": ""}, "empty"),
        ({"input": []}, "empty"),
        ({"input": [[]]}, "empty"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [len(WORDS)]}, "ids are 0 to"),
        ({"input": {"a": 1}}, "input"),
        ({"input": "a", "dimensions": 4}, "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"input": "a", "truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"input": "a", "prompt_name": "passage"}, "passage"),
        ({"input": [1], "prompt_name": "query"}, "prompt_name"),
        ({"input": "a", "normalize": False}, "normalize"),
        ({"input": "a", "temperature": 1}, "temperature"),
    ],
)
def test_what_is_wrong_is_400_with_its_name(server, fields, named):
    status, answer = server.post("/v1/embeddings", {"model": "embed"} | fields)
    assert (status, named in answer["error"]["message"]) == (400, True)


def test_tokens_of_an_encoder_are_those_that_it_embeds(server):
    _, answer = server.post("/tokenize", {"prompt": "a b", "return_token_strs": True})
    assert (answer["tokens"], answer["max_model_len"]) == ([CLS, A, B, SEP], MAX_LENGTH)
    assert answer["token_strs"] == ["[CLS]", "a", "b", "[SEP]"]
    assert server.post("/detokenize", {"tokens": [A, B]})[1] == {"prompt": "a b"}


class Held:
    """Hold a session at its first run until `open`; then let it run."""

    def __init__(self, model):
        self.session, self.open, self.waits = model._session, threading.Event(), threading.Event()
        model._session = self

    def run(self, feeds):
        self.waits.set()
        assert self.open.wait(20)
        return self.session.run(feeds)


def test_requests_that_come_together_are_one_batch_up_to_the_tokens_of_one(live):
    model = embedder(max_batch=2)  # 12 tokens
    held = Held(model)
    server = live(None, models=[("embed", model)])
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(vectors, server, "a")
        assert held.waits.wait(20)
        others = [pool.submit(vectors, server, "a") for _ in range(5)]
        until(lambda: server.thread("embed").num_open == 6)
        held.open.set()
        assert [task.result()[0] for task in [first, *others]] == [[[3, A + SEP, 2]]] * 6
    assert [len(feeds["lengths"]) for feeds in held.session.fed] == [1, 4, 1]
    text = server.request("GET", "/metrics")[2].decode()
    assert 'piston:batch_rows_sum{model_name="embed"} 6.0' in text
    assert 'piston:prompt_tokens_total{model_name="embed"} 18.0' in text


def test_one_text_does_not_wait_behind_the_many_of_another_request(live):
    model = embedder(max_batch=2)
    held = Held(model)
    server = live(None, models=[("embed", model)])
    with ThreadPoolExecutor(3) as pool:
        pool.submit(vectors, server, "a")
        assert held.waits.wait(20)
        many = pool.submit(vectors, server, ["a"] * 40)
        until(lambda: server.thread("embed").num_open == 41)
        one = pool.submit(vectors, server, "b")
        until(lambda: server.thread("embed").num_open == 42)
        held.open.set()
        one.result()
        many.result()
    batch = next(n for n, feeds in enumerate(held.session.fed) if B in feeds["input_ids"])
    assert batch == 1


def test_a_request_that_breaks_the_engine_ends_alone(live):
    model = embedder()
    held = Held(model)
    run = held.session.run

    def broken(feeds):
        if B in feeds["input_ids"]:
            raise RuntimeError("no")
        return run(feeds)

    held.session.run = broken
    server = live(None, models=[("embed", model)])
    with ThreadPoolExecutor(3) as pool:
        pool.submit(vectors, server, "a")
        assert held.waits.wait(20)
        right = pool.submit(vectors, server, "a")
        wrong = pool.submit(server.post, "/v1/embeddings", {"model": "embed", "input": "b"})
        until(lambda: server.thread("embed").num_open == 3)
        held.open.set()
        assert right.result()[0] == [[3, A + SEP, 2]]
        assert wrong.result()[0] == 500
    assert server.request("GET", "/health")[0] == 200
    for _ in range(3):
        assert server.post("/v1/embeddings", {"model": "embed", "input": "b"})[0] == 500
    until(lambda: server.request("GET", "/health")[0] == 503)  # the third failure is counted after it is answered


def test_texts_that_wait_are_bounded_end_late_and_end_when_the_client_leaves(live):
    model = embedder()
    held = Held(model)
    server = live(None, models=[("embed", model)], settings={"max_queue_requests": 4})
    body = {"model": "embed", "input": ["a", "a"]}
    assert server.post("/v1/embeddings", body | {"input": ["a"] * 5})[0] == 400
    with ThreadPoolExecutor(3) as pool:
        pool.submit(server.post, "/v1/embeddings", body)
        assert held.waits.wait(20)
        late = pool.submit(server.request, "POST", "/v1/embeddings", body, {"X-Request-Timeout": "0.05"})
        until(lambda: server.thread("embed").num_open == 4)
        status, headers, _ = server.request("POST", "/v1/embeddings", body)
        assert (status, int(headers["retry-after"]) >= 1) == (429, True)
        time.sleep(0.05)
        held.open.set()
        assert late.result()[0] == 504
    until(lambda: server.thread("embed").num_open == 0)


def test_a_server_of_two_tasks_answers_each_and_says_which_task_a_model_has(live):
    server = live(None, models=[("toy", toy_model(replying("hello"))), ("embed", embedder())])
    chat = {"model": "toy", "messages": [{"role": "user", "content": "hi"}], "temperature": 0}
    assert server.post("/v1/chat/completions", chat)[1]["choices"][0]["message"]["content"] == "hello"
    assert vectors(server, "a")[0] == [[3, A + SEP, 2]]
    listed = {item.id: item.task for item in server.client.models.list()}
    assert listed == {"toy": "text-generation", "embed": "feature-extraction"}
    for path, body in (("/v1/embeddings", {"model": "toy", "input": "a"}), ("/v1/responses", {"model": "embed"})):
        status, answer = server.post(path, body)
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (400, "wrong_task", "model")
        assert listed[body["model"]] in answer["error"]["message"]
    assert server.post("/tokenize", {"model": "embed", "prompt": "a"})[1]["tokens"] == [CLS, A, SEP]
    assert server.post("/tokenize", {"model": "embed", "messages": []})[0] == 400


def test_an_endpoint_of_another_task_says_what_the_server_has(live):
    status, answer = live(replying("x")).post("/v1/embeddings", {"model": "toy", "input": "a"})
    assert (status, answer["error"]["code"]) == (404, "wrong_task")
    assert answer["error"]["message"] == (
        "/v1/embeddings needs a bundle for feature-extraction; this server has toy (text-generation). Send requests to "
        "/v1/chat/completions or /v1/completions or /v1/responses or /v1/decisions or /tokenize or /detokenize."
    )


def until(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)
