"""Every architecture of the table against transformers in float32: prefill, decode in place, a ragged batch."""

import numpy as np
import pytest
import torch
from canonical import CanonicalSession
from zoo import ZOO, make

from piston.checkpoint.architectures import ARCHITECTURES

BOUND = 1e-3  # largest absolute difference of a logit; the toys' logits are of the order of one to thirty
NUM_STEPS = 8
LENGTHS = (4, 11, 23)  # below, above and far above the toys' window of 7
CAPACITY = 40


def reference(model, prompts):
    """Greedy answers and the logits before each token, by whole forwards without a cache."""
    answers, logits = [], []
    for prompt in prompts:
        ids, rows = list(prompt), []
        for _ in range(NUM_STEPS + 1):
            row = model(torch.tensor([ids]), use_cache=False).logits[0, -1].numpy()
            rows.append(row)
            ids.append(int(row.argmax()))
        answers.append(ids[len(prompt) :])
        logits.append(np.stack(rows))
    return answers, logits


def seeded_prompts(vocab_size):
    rng = np.random.default_rng(7)
    return [rng.integers(3, vocab_size, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module", params=sorted(ARCHITECTURES.values()))
def exported(request, toy):
    model = make(request.param)
    prompts = seeded_prompts(model.config.vocab_size)
    with torch.no_grad():
        answers, logits = reference(model, prompts)
        whole = model(torch.tensor([prompts[-1]]), use_cache=False).logits[0].numpy()
    canonical = toy(request.param)  # of the same seed, hence the same weights
    return canonical.path, canonical.cache, prompts, answers, logits, whole


def test_logits_of_every_prompt_position_match(exported):
    path, spec, prompts, _, _, whole = exported
    session, seq = CanonicalSession(path, spec, 1, CAPACITY), len(prompts[-1])
    logits = session.step([prompts[-1]], [range(seq)], [0], [seq], [range(seq)])
    assert np.abs(logits[0] - whole).max() <= BOUND


def test_a_ragged_batch_prefills_and_decodes_in_place_as_its_rows_alone(exported):
    path, spec, prompts, answers, logits, _ = exported
    session, width = CanonicalSession(path, spec, len(prompts), CAPACITY), max(LENGTHS)
    padded = [prompt + [0] * (width - len(prompt)) for prompt in prompts]
    lengths = np.array(LENGTHS)
    rows = session.step(padded, [range(width)] * 3, [0] * 3, [width] * 3, lengths[:, None] - 1)[:, 0]
    for step in range(NUM_STEPS + 1):
        for row, answer, expected in zip(rows, answers, logits, strict=True):
            assert np.abs(row - expected[step]).max() <= BOUND
            assert int(row.argmax()) == answer[step]
        if step < NUM_STEPS:
            tokens = [[answer[step]] for answer in answers]
            rows = session.step(tokens, lengths[:, None], lengths, lengths + 1, [[0]] * 3)[:, 0]
            lengths = lengths + 1


def test_a_prompt_in_two_chunks_gives_the_logits_of_one(exported):
    path, spec, prompts, _, logits, _ = exported
    session, prompt, cut = CanonicalSession(path, spec, 1, CAPACITY), prompts[-1], 9
    seq = len(prompt)
    session.step([prompt[:cut]], [range(cut)], [0], [cut], np.zeros((1, 0)))
    row = session.step([prompt[cut:]], [range(cut, seq)], [cut], [seq], [[seq - cut - 1]])[0, 0]
    assert np.abs(row - logits[-1][0]).max() <= BOUND


def test_the_toys_cover_exactly_the_table():
    assert set(ARCHITECTURES.values()) == set(ZOO)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_the_table_names_the_class_transformers_builds(architecture):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(ARCHITECTURES[architecture])
    assert AutoModelForCausalLM._model_mapping[type(config)].__name__ == architecture
