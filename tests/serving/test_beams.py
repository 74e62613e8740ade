import pytest
from toy_model import history_script, toy_model

from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams

SCRIPT = history_script()
TEXTS = "/v1/completions"
CHAT = "/v1/chat/completions"


@pytest.fixture
def server(live):
    return live(SCRIPT, num_slots=6)


def hypotheses(prompts, max_tokens, **beams):
    """What a search gives from Python."""
    model = toy_model(SCRIPT, num_slots=6)
    return model.generate(prompts, SamplingParams(max_tokens=max_tokens), beams=BeamParams(**beams))


def test_completions_are_the_likeliest_answers_to_each_prompt_best_first(server):
    body = {"model": "toy", "prompt": ["no", "hello"], "max_tokens": 5, "n": 2}
    search = {"use_beam_search": True, "best_of": 3, "length_penalty": 0.5, "early_stopping": True}
    status, answer = server.post(TEXTS, body | search)
    assert status == 200, answer
    expected = hypotheses(
        ["no", "hello"], 5, num_beams=3, num_return_sequences=2, length_penalty=0.5, early_stopping=True
    )
    assert [choice["text"] for choice in answer["choices"]] == [completion.text for completion in expected]
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["completion_tokens"] == sum(len(completion.token_ids) for completion in expected)
    assert server.thread().num_open == 0


def test_n_answers_are_searched_among_n_beams_and_one_among_four(server):
    body = {"model": "toy", "prompt": "no", "max_tokens": 5, "use_beam_search": True}
    for n, num_beams in ((1, 4), (2, 2)):
        _, answer = server.post(TEXTS, body | {"n": n})
        expected = hypotheses(["no"], 5, num_beams=num_beams, num_return_sequences=n)
        assert [choice["text"] for choice in answer["choices"]] == [completion.text for completion in expected]


def test_a_chat_is_searched_as_well(server):
    body = {"model": "toy", "messages": [{"role": "user", "content": "no"}], "max_tokens": 5, "n": 2}
    status, answer = server.post(CHAT, body | {"use_beam_search": True, "best_of": 4})
    assert status == 200, answer
    prompt = toy_model(SCRIPT).render([{"role": "user", "content": "no"}])
    expected = hypotheses([prompt], 5, num_beams=4, num_return_sequences=2)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [one.text for one in expected]


def test_tokens_of_a_search_are_counted(server):
    server.post(TEXTS, {"model": "toy", "prompt": "no", "max_tokens": 5, "n": 2, "use_beam_search": True})
    text = server.request("GET", "/metrics")[2].decode()
    expected = hypotheses(["no"], 5, num_beams=2, num_return_sequences=2)
    total = sum(len(completion.token_ids) for completion in expected)
    assert f'piston:generation_tokens_total{{model_name="toy"}} {total}.0' in text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"best_of": 3}, "best_of is not supported without use_beam_search"),
        ({"length_penalty": 2.0}, "length_penalty is not supported without use_beam_search"),
        ({"early_stopping": "never"}, "early_stopping is not supported without use_beam_search"),
        ({"use_beam_search": True, "stream": True}, "stream is not supported with use_beam_search"),
        ({"use_beam_search": True, "n": 3, "best_of": 2}, "best_of is 2; it must be at least n, which is 3"),
        ({"use_beam_search": True, "best_of": 7}, "num_beams is 7, but the engine has 6 free slots"),
        ({"use_beam_search": True, "early_stopping": "soon"}, "early_stopping is 'soon'"),
        ({"use_beam_search": True, "temperature": 0.7}, "Beam search does not support temperature"),
        ({"use_beam_search": True, "top_p": 0.5}, "top_p is 0.5, and a beam search takes no samples; leave it out"),
        ({"use_beam_search": True, "top_k": 5}, "top_k is 5, and a beam search takes no samples"),
        ({"use_beam_search": True, "stop": "a"}, "Beam search does not support stop"),
        ({"use_beam_search": True, "logprobs": 1}, "Beam search does not support logprobs"),
        ({"use_beam_search": True, "guided_regex": "a*"}, "Beam search does not support a grammar"),
    ],
)
def test_what_a_search_cannot_do_is_refused_by_name(server, fields, reason):
    status, answer = server.post(TEXTS, {"model": "toy", "prompt": "no", "max_tokens": 5} | fields)
    assert status == 400
    assert reason in answer["error"]["message"]


def test_what_asks_for_no_search_is_accepted(server):
    harmless = {"use_beam_search": False, "best_of": 1, "length_penalty": 1, "early_stopping": False}
    assert server.post(TEXTS, {"model": "toy", "prompt": "no", "max_tokens": 2} | harmless)[0] == 200
    without = {"use_beam_search": True, "top_p": 1, "top_k": 0, "min_p": 0.0}
    assert server.post(TEXTS, {"model": "toy", "prompt": "no", "max_tokens": 2} | without)[0] == 200
