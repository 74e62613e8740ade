import numpy as np
import pytest
import torch
from toy_model import VOCAB_SIZE, byte_tokenizer, history_script

from piston.core.errors import MisuseError
from piston.runtime.backends.scripted import ScriptedEngine
from piston.runtime.generate.decode import beam_search
from piston.runtime.generate.hypotheses import search
from piston.runtime.generate.request import Request
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import RowSampler

END = 2


def request_of(prompt, **options):
    sampling = SamplingParams(**{"max_tokens": 6} | options)
    return Request(list(prompt), RowSampler(sampling, prompt, eos_token_ids=(END,)))


def script_of(vocab_size, end=0.0):
    """Logits in [-3, 3] that depend on every token so far; `end` is added to those of the end token."""
    whole = history_script(vocab_size)

    def script(history):
        logits = whole(history).copy()
        logits[END] += end
        return logits

    return script


def exhaustive(script, prompt, vocab_size, max_tokens):
    """Every finished answer with the sum of its log-probabilities."""
    found, open_ = [], [((), 0.0)]
    for step in range(max_tokens):
        grown = []
        for ids, total in open_:
            logits = script((*prompt, *ids)).astype(np.float64)
            log_probs = logits - np.logaddexp.reduce(logits)
            for token in range(vocab_size):
                item = (*ids, token), total + log_probs[token]
                (found if token == END or step == max_tokens - 1 else grown).append(item)
        open_ = grown
    return found


def test_as_many_beams_as_there_are_answers_find_the_likeliest_of_all():
    vocab_size, max_tokens = 5, 3
    script = script_of(vocab_size)
    engine = ScriptedEngine(script, vocab_size=vocab_size, num_slots=25)
    beams = BeamParams(num_beams=25, num_return_sequences=3, length_penalty=0.0, early_stopping="never")
    (found,) = beam_search(engine, [request_of([1, 3], max_tokens=max_tokens)], beams)
    expected = sorted(exhaustive(script, (1, 3), vocab_size, max_tokens), key=lambda item: -item[1])[:3]
    assert [hypothesis.token_ids for hypothesis in found] == [ids for ids, _ in expected]
    np.testing.assert_allclose([hypothesis.score for hypothesis in found], [total for _, total in expected], rtol=1e-5)


def test_one_beam_is_greedy():
    script = script_of(VOCAB_SIZE)
    engine = ScriptedEngine(script, vocab_size=VOCAB_SIZE)
    ((found,),) = beam_search(engine, [request_of([7])], BeamParams(num_beams=1))
    ids = [7]
    for _ in range(6):
        ids.append(int(np.argmax(script(tuple(ids)))))
    assert list(found.token_ids) == ids[1:]


def test_requests_beyond_the_slots_are_searched_as_alone_and_slots_are_released():
    script, beams = script_of(VOCAB_SIZE, end=4.0), BeamParams(num_beams=3, num_return_sequences=2)
    prompts = [[5], [9, 8, 7], [6, 6], [11], [12, 13]]
    engine = ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=7)
    together = beam_search(engine, [request_of(prompt) for prompt in prompts], beams)
    for prompt, found in zip(prompts, together, strict=True):
        alone = ScriptedEngine(script, vocab_size=VOCAB_SIZE, num_slots=3)
        assert beam_search(alone, [request_of(prompt)], beams) == [found]
    assert engine.cache.num_free == 7


def test_only_positions_that_differ_are_copied():
    copied = []
    engine = ScriptedEngine(script_of(VOCAB_SIZE), vocab_size=VOCAB_SIZE, num_slots=4, capacity=64)
    whole = engine.cache.copy

    def copy(source, goal, length, *, start=0):
        copied.append((start, length))
        whole(source, goal, length, start=start)

    engine.cache.copy = copy
    beam_search(engine, [request_of(range(20, 40), max_tokens=12)], BeamParams(num_beams=4))
    assert copied[:3] == [(0, 20)] * 3  # the prompt, once for each further beam
    assert len(copied) > 3
    assert all(start >= 20 and length - start <= 12 for start, length in copied[3:])


def test_more_beams_than_slots_are_refused_with_both_numbers():
    engine = ScriptedEngine(script_of(8), vocab_size=8, num_slots=3)
    with pytest.raises(MisuseError, match="num_beams is 4, but the engine has 3 free slots"):
        beam_search(engine, [request_of([1])], BeamParams(num_beams=4))
    assert engine.calls == []


@pytest.mark.parametrize("option", [{"temperature": 0.5}, {"stop": ("a",)}, {"logprobs": True}, {"echo": True}])
def test_an_option_that_a_search_does_not_have_is_refused(option):
    engine = ScriptedEngine(script_of(8), vocab_size=8, num_slots=3)
    with pytest.raises(MisuseError, match=f"Beam search does not support {next(iter(option))}"):
        beam_search(engine, [request_of([1], **option)], BeamParams(num_beams=2))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": True}, "num_beams is True"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at most num_beams, which is 2"),
        ({"length_penalty": float("nan")}, "length_penalty is nan"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(options, reason):
    with pytest.raises(MisuseError, match=reason):
        BeamParams(**options)


def test_a_failing_engine_leaves_no_slot_taken():
    def script(history):
        if len(history) > 3:
            raise RuntimeError("broken")
        return np.zeros(8, np.float32)

    engine = ScriptedEngine(script, vocab_size=8, num_slots=4)
    with pytest.raises(RuntimeError, match="broken"):
        beam_search(engine, [request_of([1]), request_of([1, 3])], BeamParams(num_beams=2))
    assert engine.cache.num_free == 4


CASES = [
    {"num_beams": 4},
    {"num_beams": 4, "num_return_sequences": 4, "length_penalty": 2.0},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": -1.0, "early_stopping": True},
    {"num_beams": 4, "num_return_sequences": 3, "early_stopping": "never", "length_penalty": 0.5},
    {"num_beams": 4, "num_return_sequences": 2, "no_repeat_ngram_size": 2, "min_new_tokens": 3},
    {"num_beams": 2, "repetition_penalty": 1.7, "bad_words_ids": [[5], [6, 7]]},
    {"num_beams": 3, "num_return_sequences": 3, "forced_bos_token_id": 9, "forced_eos_token_id": 1},
]
BEAMS = set(BeamParams.__slots__)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_hypotheses_and_scores_of_a_decoder_are_those_of_transformers(decoder, case, bias):
    model, engine = decoder(bias)
    options = {name: value for name, value in case.items() if name not in BEAMS and not name.startswith("forced_bos")}
    beams = BeamParams(**{name: value for name, value in case.items() if name in BEAMS})
    given = {name: value for name, value in case.items() if not name.startswith("forced_bos")}
    for prompt in ([3, 4, 5], [11, 12, 3, 4, 5, 6, 7]):
        expected = model.generate(
            torch.tensor([prompt]),
            **given,
            do_sample=False,
            max_new_tokens=10,
            output_scores=True,
            return_dict_in_generate=True,
        )
        sampling = SamplingParams.from_mapping({"max_tokens": 10} | options)
        request = Request(list(prompt), RowSampler(sampling, prompt, eos_token_ids=(2,)))
        (found,) = beam_search(engine, [request], beams)
        assert_same(found, expected, len(prompt))


def assert_same(found, expected, skipped):
    for hypothesis, ids, score in zip(found, expected.sequences, expected.sequences_scores, strict=True):
        rest, count = ids[skipped:].tolist(), len(hypothesis.token_ids)
        assert list(hypothesis.token_ids) == rest[:count]
        assert set(rest[count:]) <= {2}  # it fills with the end token where the padding is 0
        assert hypothesis.score == pytest.approx(float(score), abs=2e-4)


@pytest.fixture(scope="module")
def decoder(toys):
    """decoder(bias) -> a seeded GPT-2 and an engine of it, with `bias` added to the logits of the end token."""
    from zoo import make

    from piston.runtime.backends.ort_cpu import OrtEngine

    toy, model = toys.graph("gpt2"), make("gpt2")
    engine = OrtEngine.open(toy.path, toy.cache, num_slots=4, capacity=40)
    whole = model.lm_head.forward
    step, prefill = engine.step, engine.prefill
    added = {"bias": 0.0}

    def moved(logits):
        logits = logits.copy()
        logits[..., 2] += added["bias"]
        return logits

    def forward(hidden):
        logits = whole(hidden).clone()
        logits[..., 2] += added["bias"]
        return logits

    model.lm_head.forward = forward
    engine.step = lambda tokens: {slot: moved(logits) for slot, logits in step(tokens).items()}
    engine.prefill = lambda *arguments, **named: moved(prefill(*arguments, **named))
    model.generation_config.update(pad_token_id=0, eos_token_id=2, bos_token_id=1)

    def biased(bias):
        added["bias"] = bias
        return model, engine

    yield biased
    engine.close()


def test_completions_have_texts_without_the_end_token_and_their_scores():
    tokenizer = byte_tokenizer()
    from piston.runtime.generate.generation import prepare

    engine = ScriptedEngine(script_of(VOCAB_SIZE, end=6.0), vocab_size=VOCAB_SIZE, num_slots=3)
    generations = prepare([tokenizer.encode("hello")], SamplingParams(max_tokens=8), tokenizer, (END,))
    first, second = search(engine, generations, BeamParams(num_beams=3, num_return_sequences=2))
    assert first.score > second.score
    assert first.finish_reason == "stop"
    assert first.stop_reason == END == first.token_ids[-1]
    assert first.text == tokenizer.decode(first.token_ids)
