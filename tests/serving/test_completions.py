import json

import numpy as np
import pytest
from toy_model import VOCAB_SIZE, byte_tokenizer, history_script, ids_of, replying


def complete(live, **fields):
    return live.client.completions.create(**({"model": "toy", "temperature": 0, "max_tokens": 4} | fields))


def test_text_ids_and_lists_of_both_are_prompts(live):
    server = live(replying("hello"))
    ids = ids_of("a<bot>")
    for prompt, num in (("a<bot>", 1), (ids, 1), (["a<bot>", "no<bot>"], 2), ([ids, ids_of("no<bot>")], 2)):
        choices = complete(server, prompt=prompt).choices
        assert [choice.text for choice in choices] == ["hello"] * num


def test_sixteen_tokens_are_the_default(live):
    answer = live(history_script()).client.completions.create(model="toy", prompt="a", temperature=0)
    assert answer.usage.completion_tokens <= 16


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_scores_the_prompt_as_lm_eval_reads_it(live, stream, max_tokens):
    script = history_script()
    prompt = ids_of("no hello w")
    server = live(script)
    fields = {"prompt": [prompt], "echo": True, "logprobs": 1, "max_tokens": max_tokens}
    answers = complete(server, stream=stream, **fields)
    found = answers.choices[0].logprobs.model_dump() if not stream else joined(answers)
    assert found["token_logprobs"][0] is None
    for position in range(1, len(prompt)):
        logits = script(tuple(prompt[:position])).astype(np.float64)
        expected = logits - np.log(np.exp(logits).sum())
        assert found["token_logprobs"][position] == pytest.approx(expected[prompt[position]], abs=1e-5)
        assert max(found["top_logprobs"][position].values()) == pytest.approx(expected.max(), abs=1e-5)
    assert len(found["tokens"]) == len(prompt) + max_tokens
    assert found["tokens"][: len(prompt)] == [byte_tokenizer().text_of(token_id) for token_id in prompt]
    assert found["text_offset"][: len(prompt)] == [0, *np.cumsum([len(t) for t in found["tokens"]])[: len(prompt) - 1]]


def joined(chunks):
    found = {}
    for chunk in chunks:
        for name, values in (chunk.choices[0].logprobs or NONE).model_dump().items():
            found.setdefault(name, []).extend(values or [])
    return found


class NONE:
    @staticmethod
    def model_dump():
        return {}


def test_a_scored_prompt_is_scored_again_in_full_though_it_is_cached(live):
    server = live(history_script())
    fields = {"prompt": "no hello w", "echo": True, "logprobs": 0}
    first, second = (complete(server, **fields).choices[0].logprobs.token_logprobs for _ in range(2))
    assert first == second


def test_a_long_prompt_is_scored_in_chunks(live):
    script = history_script()
    prompt = ids_of("ab" * 100)
    found = complete(live(script), prompt=prompt, echo=True, logprobs=0, max_tokens=1).choices[0].logprobs
    assert len(found.token_logprobs) == len(prompt) + 1
    logits = script(tuple(prompt[:150])).astype(np.float64)
    expected = logits[prompt[150]] - np.log(np.exp(logits).sum())
    assert found.token_logprobs[150] == pytest.approx(expected, abs=1e-5)


def test_echo_begins_with_the_prompt(live):
    assert complete(live(replying("hello")), prompt="a<bot>", echo=True).choices[0].text == "ahello"


def test_a_token_outside_the_vocabulary_is_refused(live):
    status, answer = live(replying("x")).post("/v1/completions", {"model": "toy", "prompt": [VOCAB_SIZE]})
    assert (status, answer["error"]["param"]) == (400, "prompt")


def test_every_row_of_a_stream_ends_once(live):
    server = live(history_script(), num_slots=2)
    reasons = {}
    for chunk in complete(server, prompt=["a", "b", "c"], n=2, temperature=1, seed=1, stream=True):
        (choice,) = chunk.choices
        if choice.finish_reason:
            assert choice.index not in reasons
            reasons[choice.index] = choice.finish_reason
    assert sorted(reasons) == [0, 1, 2, 3, 4, 5]


def test_parts_of_a_character_are_spelt_as_bytes(live):
    answer = complete(live(replying("👍")), prompt="a<bot>", logprobs=0)
    tokens = answer.choices[0].logprobs.tokens
    assert tokens[:4] == [f"bytes:\\x{byte:02x}" for byte in "👍".encode()]
    assert answer.choices[0].text == "👍"
    assert json.dumps(tokens)


def test_every_chunk_has_the_usage_so_far_where_it_is_asked_for(live):
    server = live(replying("hello you"))
    options = {"include_usage": True, "continuous_usage_stats": True}
    stream = server.client.completions.create(
        model="toy", prompt="a<bot>", temperature=0, stream=True, stream_options=options
    )
    chunks = list(stream)
    counts = [chunk.usage.completion_tokens for chunk in chunks]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (1, len(ids_of("hello you")) + 1)
    assert {chunk.usage.prompt_tokens for chunk in chunks} == {len(ids_of("a<bot>"))}
