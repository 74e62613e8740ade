"""SmolLM2-135M from checkpoint to tokens, against transformers on the same weights."""

import numpy as np
import pytest

from piston.cli.main import main
from piston.runtime import SamplingParams

pytestmark = pytest.mark.model
QUESTION = "What is the capital of France?"
PROMPTS = [
    "The capital of France is",
    "Once upon a time, in a village by the sea, there lived",
    "def fibonacci(n):\n",
    "Water boils at a temperature of",
    "The three primary colours are",
]


def greedy_choices(model, prompt_ids, token_ids):
    """The likeliest token of transformers before each of `token_ids`: all the same, greedy search gives them."""
    import torch

    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt_ids, *token_ids[:-1]]]), use_cache=False).logits[0]
    return tuple(logits[len(prompt_ids) - 1 :].argmax(dim=-1).tolist())


def test_the_demo_knows_the_capital_of_france(demo_bundle, capsys):
    assert main(["run", str(demo_bundle), "--chat", "--prompt", QUESTION]) == 0
    captured = capsys.readouterr()
    assert captured.out == "The capital of France is Paris.\n"
    assert "tokens/s" in captured.err


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_are_those_of_transformers(demo, transformers_model, prompt):
    ids = demo.encode(prompt)
    completion = demo.generate(prompt, SamplingParams(max_tokens=24, min_tokens=24))
    assert len(completion.token_ids) == 24
    assert completion.token_ids == greedy_choices(transformers_model, ids, completion.token_ids)


def test_a_ragged_batch_answers_each_prompt_as_alone(demo):
    sampling = SamplingParams(max_tokens=24)
    together = demo.generate(PROMPTS, sampling)  # five rows on four slots: the fifth is admitted when one is free
    alone = [demo.generate(prompt, sampling) for prompt in PROMPTS]
    assert [completion.token_ids for completion in together] == [completion.token_ids for completion in alone]


def test_logits_of_a_long_prompt_match_transformers(demo, transformers_model):
    import torch

    ids = np.random.default_rng(5).integers(100, 49_000, 300).tolist()
    with torch.inference_mode():
        expected = transformers_model(torch.tensor([ids]), use_cache=False).logits[0].numpy()
    slot = demo.engine.cache.admit()
    actual = demo.engine.prefill(slot, ids, num_logits=len(ids))
    demo.engine.cache.release(slot)
    assert np.abs(actual - expected).max() <= 1e-4 * np.abs(expected).max()


def test_streamed_pieces_join_to_the_generated_text(demo):
    sampling = SamplingParams(max_tokens=40)
    prompt = "Write 'hello' in Japanese, Arabic and Hindi, then an emoji of a family:"
    assert "".join(demo.stream(prompt, sampling)) == demo.generate(prompt, sampling).text


def test_same_seed_same_text_and_another_seed_another(demo):
    def text(seed):
        return demo.generate(PROMPTS[1], SamplingParams(max_tokens=24, temperature=1.0, seed=seed)).text

    first = text(1)
    assert text(1) == first
    assert text(2) != first


def test_a_second_turn_prefills_only_what_is_new(demo):
    with demo.conversation() as conversation:
        first = "".join(conversation.say(QUESTION))
        num_first = conversation.completion.num_prompt_tokens
        second = "".join(conversation.say("And of Italy?"))
        completion = conversation.completion
        messages = list(conversation.messages)
    assert (first, second) == ("The capital of France is Paris.", "The capital of Italy is Rome.")
    assert completion.num_prefilled_tokens < completion.num_prompt_tokens - num_first
    assert demo.chat(messages[:-1]).text == second  # as without a cache


def test_a_stop_string_over_token_borders_ends_the_text_before_it(demo):
    text = demo.generate(PROMPTS[0], SamplingParams(max_tokens=24)).text
    stop = text[3:12]
    completion = demo.generate(PROMPTS[0], SamplingParams(max_tokens=24, stop=(stop,)))
    assert (completion.text, completion.stop_reason) == (text[:3], stop)
