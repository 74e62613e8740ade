import pytest

from piston.runtime import load

pytest_plugins = ["text_fixtures"]
PATH = "/v1/completions"


@pytest.fixture(scope="module")
def model(text_bundle):
    with load(text_bundle) as opened:
        yield opened


@pytest.fixture
def server(live, model):
    return live(None, models=[("texts", model)])


def test_completions_are_greedy_answers_to_each_text_and_count_the_source(server, model):
    texts = ["the sea is calm", "das Meer"]
    status, answer = server.post(PATH, {"model": "texts", "prompt": texts, "max_tokens": 6})
    assert status == 200, answer
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    lengths = [len(model.tokenizer.encode(text)) for text in texts]
    assert answer["usage"]["prompt_tokens"] == sum(lengths) + 2
    assert all(choice["finish_reason"] in {"stop", "length"} for choice in answer["choices"])


def test_a_stream_joins_to_the_whole_answer(server):
    body = {"model": "texts", "prompt": "the sea", "max_tokens": 6}
    whole = server.client.completions.create(**body).choices[0].text
    pieces = server.client.completions.create(**body, stream=True)
    assert "".join(choice.text for piece in pieces for choice in piece.choices) == whole


def test_a_chat_is_refused_with_the_reason(server):
    status, answer = server.post(
        "/v1/chat/completions", {"model": "texts", "messages": [{"role": "user", "content": "hi"}]}
    )
    assert status in {400, 404}
    assert "text2text-generation" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ({"prompt": [[1, 2]]}, "must be a text or a list of texts"),
        ({"prompt": " "}, "is empty"),
        ({"prompt": " ".join(["sea"] * 80)}, "has 81 tokens; the engine reads up to 64"),
        ({"guided_regex": "a*"}, "structured output is for language models"),
        ({"echo": True}, "echo"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_reason(server, field, reason):
    status, answer = server.post(PATH, {"model": "texts", "prompt": "the sea", "max_tokens": 6} | field)
    assert status == 400
    assert reason in answer["error"]["message"]
