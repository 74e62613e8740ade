import pytest
import torch

from piston.core.errors import MisuseError, PromptTooLongError
from piston.runtime import load
from piston.runtime.backends.engine import Source
from piston.runtime.generate.scheduler import Scheduler

pytest_plugins = ["text_fixtures"]

TEXTS = [
    "the sea is calm",
    "wind",
    "the wind blows from the north and the sea is calm today",
    "das Meer ist ruhig",
    "and",
]


@pytest.fixture(scope="module")
def model(text_bundle):
    with load(text_bundle) as opened:
        yield opened


def greedy(model, ids, max_tokens, start=0):
    """What transformers generates, without the token that begins it."""
    out = model.generate(torch.tensor([ids]), do_sample=False, num_beams=1, max_new_tokens=max_tokens)
    assert out[0, 0] == start
    return out[0, 1:].tolist()


def test_ragged_texts_beyond_the_slots_get_the_greedy_answers_of_transformers(model, text_model):
    completions = model.generate(TEXTS, model.sampling(max_tokens=12))
    for text, completion in zip(TEXTS, completions, strict=True):
        ids = model.tokenizer.encode(text)
        assert list(completion.token_ids) == greedy(text_model[1], ids, 12)
        assert completion.num_source_tokens == len(ids)
        assert completion.text == model.tokenizer.decode(completion.token_ids)


def test_a_stream_is_the_answer_in_pieces(model):
    (whole,) = model.generate(TEXTS[:1], model.sampling(max_tokens=9))
    stream = model.stream(TEXTS[0], model.sampling(max_tokens=9))
    assert "".join(stream) == whole.text
    assert stream.completion.token_ids == whole.token_ids


def test_seeded_samples_of_one_text_differ_and_repeat(model):
    sampling = model.sampling(max_tokens=8, temperature=2.0, n=3, seed=5)
    first, again = (model.generate(["wind"], sampling) for _ in range(2))
    assert len({completion.token_ids for completion in first}) == 3
    assert [one.token_ids for one in first] == [other.token_ids for other in again]


def test_a_prefix_begins_the_answer_instead_of_the_checkpoints(model, text_model):
    (answer,) = model.generate(["wind"], model.sampling(max_tokens=6), prefix=[0, 7, 9])
    ids = torch.tensor([model.tokenizer.encode("wind")])
    given = torch.tensor([[0, 7, 9]])
    expected = text_model[1].generate(ids, decoder_input_ids=given, do_sample=False, num_beams=1, max_new_tokens=6)
    assert list(answer.token_ids) == expected[0, 3:].tolist()


def test_a_text_beyond_the_engine_is_refused_with_both_numbers_or_cut_as_asked(model):
    long = " ".join(["sea"] * 80)
    with pytest.raises(PromptTooLongError, match="Text 1 has 81 tokens; the engine reads up to 64"):
        model.generate(["wind", long])
    assert model.encode(long, truncate=True) == [*model.tokenizer.encode(long)[:63], 1]
    (answer,) = model.generate([long], model.sampling(max_tokens=3), truncate=True)
    assert answer.num_source_tokens == 64


@pytest.mark.parametrize(("texts", "reason"), [(["wind", " "], "Text 1 is empty"), ("wind", "takes a list of texts")])
def test_what_is_no_list_of_texts_is_refused(model, texts, reason):
    with pytest.raises(MisuseError, match=reason):
        model.generate(texts)


def test_an_answer_beyond_the_engine_is_refused(model):
    with pytest.raises(PromptTooLongError, match="max_tokens is 80"):
        model.generate(["wind"], model.sampling(max_tokens=80))


def test_kept_states_are_those_of_the_same_source_alone(model):
    runs = []
    whole, model.engine.encoder.run = model.engine.encoder.run, lambda feeds: runs.append(1) or whole(feeds)
    scheduler = Scheduler(model.engine, keep_prefixes=True)
    answers = []
    try:
        for text in ("wind", "wind", "das Meer", "wind"):
            (generation,) = model.prepare([text], model.sampling(max_tokens=5))
            scheduler.add(generation.request)
            while scheduler.has_work:
                list(scheduler.step())
            answers.append(generation.request.output_ids)
    finally:
        scheduler.close()
        model.engine.encoder.run = whole
    assert answers[0] == answers[1] == answers[3] != answers[2]
    assert len(runs) == 2


def test_a_slot_with_positions_takes_no_other_source(model):
    slot = model.engine.cache.admit()
    try:
        model.engine.encode(slot, Source.of_text([4, 1]))
        model.engine.prefill(slot, [0])
        with pytest.raises(MisuseError, match="is not empty"):
            model.engine.encode(slot, Source.of_text([5, 1]))
    finally:
        model.engine.cache.release(slot)
