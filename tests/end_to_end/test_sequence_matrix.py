"""Translation, answers to texts, and speech, from checkpoint to answer: in Python, by command and over HTTP.

In float and INT8, on ONNX Runtime and on Piston's own kernels, greedily and by beam search; and as plans of both graphs
that the real compiler of TensorRT-RTX builds. docs/tasks.md has the table of these cases (tests/test_task_targets.py).
"""

import functools

import numpy as np
import pytest
import torch
from speech import IDS, RATE, features_of, samples_of, segments_of, words_of, write_sound
from task_answers import by_command, check_plans, opened, over_http
from task_matrix import CPU_TARGETS, LENGTH_PENALTY, NUM_ANSWERS, NUM_BEAMS, NUM_TOKENS, SCHEMES, SEQUENCES, SOURCES
from transformers import AutoTokenizer

from piston.runtime.backends.engine import Source
from piston.runtime.sampling.beam_params import BeamParams

BEAMS = {"num_beams": NUM_BEAMS, "num_return_sequences": NUM_ANSWERS, "length_penalty": LENGTH_PENALTY}
SPEECH_BEAMS = {"num_beams": NUM_BEAMS, "length_penalty": LENGTH_PENALTY}
FIRST_TRY = {"temperatures": (0.0,), "compression_ratio_threshold": None, "logprob_threshold": None}
# Of the length of all logits: rounding of float32, and what INT8 costs a random model, which has no redundancy.
MOST_MOVED = {"fp": 2e-5, "w8a8": 0.25}
TEXTS = {name: row for name, row in SEQUENCES.items() if row.method != "transcribe"}
SPEECH = {name: row for name, row in SEQUENCES.items() if row.method == "transcribe"}
COMPILED = {("flan-t5", "fp"), ("whisper", "w8a8")}  # by `make test`
SECONDS, SEED = 2.7, 12  # three windows that the toy takes for English; what it hears differs by language and task

pytestmark = pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")


@functools.cache
def of_transformers(toys, name):
    """Token ids of the sources, and what transformers generates from each alone: (token ids, text) of each answer.

    First greedily, then the best hypotheses of a beam search.
    """
    row, model = TEXTS[name], toys.reference(name)
    tokenizer, forced, marked = AutoTokenizer.from_pretrained(toys.checkpoint(name)), {}, ""
    if name == "nllb":
        tokenizer.src_lang = row.body["source"]
        forced = {"forced_bos_token_id": tokenizer.convert_tokens_to_ids(row.body["target"])}
    elif name == "marian":
        marked = f">>{row.body['target']}<< "
    sources = [tokenizer(marked + text).input_ids for text in SOURCES]

    def answers(**search):
        for ids in sources:
            given = {"do_sample": False, "max_new_tokens": NUM_TOKENS, **search, **forced}
            for found in model.generate(torch.tensor([ids]), **given)[:, 1:].tolist():
                yield found, tokenizer.decode(found, skip_special_tokens=True)

    return sources, list(answers(num_beams=1)), list(answers(**BEAMS))


def of_python(model, row):
    """Completions, greedy and by beam search."""
    sampling = model.sampling(max_tokens=NUM_TOKENS)
    for beams in (None, BeamParams(**BEAMS)):
        if row.method == "generate":
            yield model.generate(SOURCES, sampling, beams=beams)
        else:
            pair = {name: row.body[name] for name in ("source", "target")}
            yield model.translate(SOURCES, **pair, sampling=sampling, beams=beams)


def of_http(answer):
    """The texts of an answer in the order of the sources, the best first."""
    if "choices" in answer:
        return [choice["text"] for choice in answer["choices"]]
    others = answer.get("alternatives", [[] for _ in answer["translatedText"]])
    return [text for best, more in zip(answer["translatedText"], others, strict=True) for text in (best, *more)]


def check_logits(toys, name, scheme, model, source, prompt, **encoder_inputs):
    """Logits behind each token of a fixed answer are near those of transformers' float model (teacher forcing)."""
    read = [*prompt, *range(4, 12)]
    slot = model.engine.cache.admit()
    model.engine.encode(slot, source)
    found = model.engine.prefill(slot, read, len(read)).copy()
    model.engine.cache.release(slot)
    with torch.no_grad():
        expected = toys.reference(name)(**encoder_inputs, decoder_input_ids=torch.tensor([read])).logits[0].numpy()
    assert np.linalg.norm(found - expected) <= MOST_MOVED[scheme] * np.linalg.norm(expected)


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", TEXTS)
def test_texts_get_the_answers_of_transformers_in_python_by_command_and_over_http(
    real_piston, sequence_toys, name, scheme, target
):
    row = TEXTS[name]
    sources, *expected = of_transformers(sequence_toys, name)
    with opened(sequence_toys, row, name, scheme, target) as (bundle, model):
        if row.method == "translate":
            assert (row.body["source"], row.body["target"]) in model.pairs
        found = list(of_python(model, row))
        answers = list(over_http(model, row))
        source, ids = Source.of_text(sources[0]), torch.tensor([sources[0]])
        check_logits(sequence_toys, name, scheme, model, source, model.prefix, input_ids=ids)
    printed = list(by_command(real_piston, bundle, row, target))
    for completions, wanted, answer, result in zip(found, expected, answers, printed, strict=True):
        tokens = [list(completion.token_ids) for completion in completions]
        texts = [completion.text for completion in completions]
        if scheme == "fp":  # transformers pads the shorter ones of several hypotheses
            assert tokens == [ids[: len(own)] for own, (ids, _) in zip(tokens, wanted, strict=True)]
            assert [text.strip() for text in texts] == [text.strip() for _, text in wanted]
        assert [one["token_ids"] for one in result["completions"]] == tokens
        assert [one["text"] for one in result["completions"]] == of_http(answer) == texts


@pytest.mark.parametrize("target", CPU_TARGETS)
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", SPEECH)
def test_speech_gets_the_text_of_transformers_in_python_by_command_and_over_http(
    real_piston, sequence_toys, tmp_path, name, scheme, target
):
    row, sound = SPEECH[name], write_sound(tmp_path / "sound.wav", SECONDS, SEED)
    task = "translate" if "translate" in row.words else "transcribe"
    options = {"language": row.body.get("language"), "task": task}
    with opened(sequence_toys, row, row.toy, scheme, target) as (bundle, model):
        searches = (None, BeamParams(**SPEECH_BEAMS))
        found = [model.transcribe(sound, beams=beams, **options) for beams in searches]
        first = [model.transcribe(sound, beams=beams, **options, **FIRST_TRY) for beams in searches]
        answers = list(over_http(model, row, sound))
        features = features_of(samples_of(sound)[:RATE])
        source = Source({"audio": features.numpy()}, "sound", model.engine.max_source)
        start = [IDS["<|startoftranscript|>"]]
        check_logits(sequence_toys, row.toy, scheme, model, source, start, input_features=features)
    printed = list(by_command(real_piston, bundle, row, target, sound))
    if scheme == "fp":
        reference = sequence_toys.reference(row.toy)
        for one, search in zip(first, ({}, SPEECH_BEAMS), strict=True):
            assert one.language == (options["language"] or "en")
            expected = segments_of(reference, samples_of(sound), **options, **search)
            assert [(round(part.start, 2), round(part.end, 2), words_of(part.token_ids)) for part in one.segments] == [
                (start, end, words_of(ids)) for start, end, ids in expected if words_of(ids) and start < SECONDS
            ]
        # What the toy says greedily is accepted; what its beams find is improbable or repeats itself: it is drawn anew.
        assert [whole == one for whole, one in zip(found, first, strict=True)] == [True, False]
    for one, result, answer in zip(found, printed, answers, strict=True):
        assert one.segments
        assert result == one.to_json()
        assert answer == {"task": task, **one.to_json()}


@pytest.mark.parametrize(
    ("name", "scheme"),
    [
        pytest.param(name, scheme, marks=[] if (name, scheme) in COMPILED else pytest.mark.slow)
        for name in ("flan-t5", "marian", "whisper")  # NLLB has Marian's graphs
        for scheme in SCHEMES
    ],
)
def test_the_compiler_of_tensorrt_rtx_builds_plans_of_both_graphs(toys, sequence_toys, name, scheme):
    check_plans(toys, sequence_toys.model(name, scheme), scheme)
