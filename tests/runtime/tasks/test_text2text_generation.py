import json
import re

import numpy as np
import pytest
import torch

from piston.cli.main import main
from piston.core.bundle.golden import GoldenByTarget
from piston.core.errors import MisuseError, PromptTooLongError
from piston.runtime import load
from piston.runtime.backends.engine import Source
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.verify import verify

TEXTS = [
    "the sea is calm",
    "wind",
    "the wind blows from the north and the sea is calm today",
    "das Meer ist ruhig",
    "and",
]


@pytest.fixture
def command(capsys):
    """Run a command line in this process; its stdout, or an AssertionError with its stderr."""

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


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


@pytest.mark.parametrize(
    ("method", "given", "options", "reason"),
    [
        ("generate", ["wind", " "], {}, "Text 1 is empty"),
        ("generate", "wind", {}, "texts is 'wind'; it must be a list of strings; for one text, give [text]"),
        ("generate", 3, {}, "texts is 3; it must be a list of strings"),
        ("generate", ["wind"], {"sampling": {"top_k": 3}}, "sampling is {'top_k': 3}; it must be a SamplingParams"),
        ("generate", ["wind"], {"beams": 4}, "beams is 4; it must be a BeamParams or None"),
        ("generate", ["wind"], {"prefix": "de"}, "prefix is 'de'; it must be a list of integers or None"),
        ("translate", "wind", {"source": "en", "target": "de"}, "texts is 'wind'; it must be a list of strings"),
        ("translate", ["wind"], {"source": 1, "target": "de"}, "source is 1; it must be a string"),
        ("stream", ["wind"], {}, "text is ['wind']; it must be a string"),
    ],
)
def test_an_argument_of_another_type_is_named_with_what_it_takes(model, method, given, options, reason):
    with pytest.raises(MisuseError, match=re.escape(reason)):
        getattr(model, method)(given, **options)


def test_standard_input_without_text_is_refused(refused, text_bundle):
    status, said = refused("run", text_bundle, "--text", "-", stdin="\n")
    assert (status, said.partition(";")[0]) == (2, "Standard input has no text")


def test_an_answer_beyond_the_engine_is_refused(model):
    with pytest.raises(PromptTooLongError, match="max_tokens is 80"):
        model.generate(["wind"], model.sampling(max_tokens=80))


def test_kept_states_are_those_of_the_same_source_alone(model):
    runs = []
    encoder = model.engine.encoder
    whole, encoder.run_into = encoder.run_into, lambda *given: runs.append(1) or whole(*given)
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
        encoder.run_into = whole
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


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.6},
        {"num_beams": 3, "early_stopping": True, "no_repeat_ngram_size": 2, "forced_bos_token_id": 8},
        {"num_beams": 2, "num_return_sequences": 2, "early_stopping": "never", "forced_eos_token_id": 1},
    ],
)
def test_hypotheses_and_scores_are_those_of_transformers(model, text_model, options):
    given = {name: value for name, value in options.items() if name in BeamParams.__slots__}
    rest = {name: value for name, value in options.items() if name not in given}
    found = iter(model.generate(TEXTS, model.sampling(max_tokens=9, **rest), beams=BeamParams(**given)))
    for text in TEXTS:
        expected = text_model[1].generate(
            torch.tensor([model.tokenizer.encode(text)]),
            **options,
            do_sample=False,
            max_new_tokens=9,
            output_scores=True,
            return_dict_in_generate=True,
        )
        for ids, score in zip(expected.sequences, expected.sequences_scores, strict=True):
            completion = next(found)
            assert list(completion.token_ids) == ids[1 : 1 + len(completion.token_ids)].tolist()
            assert set(ids[1 + len(completion.token_ids) :].tolist()) <= {1}  # it fills with the end where padding is 0
            assert completion.score == pytest.approx(float(score), abs=2e-4)
    assert model.engine.cache.num_free == 4


def test_run_prints_the_best_hypotheses_with_their_scores(text_bundle, command):
    options = ("--text", "wind", "--num-beams", "3", "-n", "2", "--max-tokens", "5", "--json")
    completions = json.loads(command("run", text_bundle, *options))["completions"]
    assert len(completions) == 2
    assert completions[0]["score"] >= completions[1]["score"]


def test_run_streams_one_text_and_prints_several_a_line_each(text_bundle, command):
    one = command("run", text_bundle, "--text", "wind", "--max-tokens", "5", "--quiet")
    both = command("run", text_bundle, "--text", "wind", "--text", "the sea", "--max-tokens", "5")
    assert both.splitlines()[0] == one.rstrip("\n")
    assert len(both.splitlines()) == 2


def test_an_option_of_a_search_without_beams_is_refused(text_bundle, command):
    with pytest.raises(AssertionError, match="--length-penalty needs --num-beams"):
        command("run", text_bundle, "--text", "wind", "--length-penalty", "2")


def test_a_bundle_verifies_and_one_whose_encoder_was_changed_does_not(text_bundle, tmp_path, command):
    assert "answers as built" in command("verify", text_bundle)
    golden = json.loads((text_bundle / "verify.json").read_text())["engines"]["ort-cpu"]["answers"]
    assert [answer["start_ids"] for answer in golden] == [[0]] * len(golden)
    with load(text_bundle) as opened:
        whole = opened.engine.encoder.run_into

        def negative(feeds, outputs):
            whole(feeds, outputs)
            for array in outputs.values():
                np.negative(array, out=array)

        opened.engine.encoder.run_into = negative
        expected = GoldenByTarget.read(text_bundle).of("ort-cpu")
        verdict = verify(opened.engine, opened.tokenizer, expected, expected.threshold("float32"))
    assert not verdict.is_passed


def test_a_long_text_is_answered_in_pieces_that_fit(model, text_bundle, command):
    text = ". ".join([" ".join(["sea"] * 30)] * 3)
    pieces = model.split(text)
    assert [len(model.encode(piece)) for piece in pieces] == [30 + 1 + 30 + 1 + 1, 30 + 1]
    options = ("--text", text, "--split-sentences", "--max-tokens", "3", "--json")
    assert len(json.loads(command("run", text_bundle, *options))["completions"]) == 2
