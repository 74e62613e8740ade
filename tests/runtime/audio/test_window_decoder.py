"""Beam search of speech: the segments, texts and log probabilities of transformers with as many beams."""

import json

import pytest
import torch
from speech import IDS, RATE, features_of, make_whisper, segments_of, sound, words_of, write_sound
from transformers import GenerationMixin

from piston.core.errors import MisuseError
from piston.runtime import load
from piston.runtime.sampling.beam_params import BeamParams

QUIET = {"temperatures": (0.0,), "compression_ratio_threshold": None, "logprob_threshold": None}
SECONDS = 2.7


@pytest.fixture(scope="module")
def whisper():
    return make_whisper()


@pytest.fixture(scope="module")
def bundle(toys, speech_model):
    return toys.built(speech_model[0], max_batch=2)


@pytest.fixture(scope="module")
def model(bundle):
    with load(bundle, max_batch=4) as opened:
        yield opened


def found_of(model, samples, **options):
    segments = model.transcribe((samples, RATE), language="en", **options, **QUIET).segments
    return [(round(one.start, 2), round(one.end, 2), words_of(one.token_ids)) for one in segments]


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 2, "length_penalty": 0.0, "early_stopping": True}])
def test_segments_of_long_audios_are_those_of_transformers(model, whisper, options):
    differing = 0
    for seed in range(4):
        samples = sound(SECONDS, seed)
        expected = [(*times, words_of(ids)) for *times, ids in segments_of(whisper, samples, **options)]
        found = found_of(model, samples, beams=BeamParams(**options))
        assert found == [one for one in expected if one[2] and one[0] < SECONDS]
        differing += found != found_of(model, samples)
    assert differing  # from greedy ones
    assert model.engine.cache.num_free == 4


def test_the_log_probability_is_that_of_the_tokens_that_were_found(model, whisper):
    """Without timestamps; transformers' generate for Whisper does not end where the model says them all the same."""
    prompt = [IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    for seed in range(40):
        features, given = features_of(sound(0.9, seed)), torch.tensor([prompt])
        found = GenerationMixin.generate(whisper, features, decoder_input_ids=given, num_beams=3, max_new_tokens=36)
        if words_of(ids := found[0, len(prompt) :].tolist()):
            break
    with torch.no_grad():
        logits = whisper(features, decoder_input_ids=found[:, :-1]).logits[0, len(prompt) - 1 :]
    logits[:, whisper.generation_config.suppress_tokens] = -torch.inf
    logits[0, whisper.generation_config.begin_suppress_tokens] = -torch.inf
    expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean().item()
    options = {"language": "en", "timestamps": False, "beams": BeamParams(num_beams=3)}
    (segment,) = model.transcribe((sound(0.9, seed), RATE), **options, **QUIET).segments
    assert words_of(segment.token_ids) == words_of(ids)
    assert segment.avg_logprob == pytest.approx(expected, abs=1e-4)


def test_a_higher_temperature_draws_without_beams(model):
    samples = (sound(SECONDS, 1), RATE)
    options = {"language": "en", "temperatures": (0.0, 0.9), "compression_ratio_threshold": 0.0}
    found = model.transcribe(samples, **options, beams=BeamParams(num_beams=3)).segments
    assert found == model.transcribe(samples, **options).segments
    assert {segment.temperature for segment in found} == {0.9}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"beams": 3}, "beams is 3; it must be a BeamParams or None"),
        (
            {"beams": BeamParams(num_beams=5)},
            "num_beams is 5, but the engine has 4 free slots; load with a larger max_b",
        ),
        ({"beams": BeamParams(num_return_sequences=2)}, "A transcription has one text; num_return_sequences must be 1"),
        ({"beams": BeamParams(), "temperatures": (0.4,)}, "beams are for temperature 0"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_the_audio_is_read(model, options, reason):
    with pytest.raises(MisuseError, match=reason):
        model.stream("/nowhere.wav", **options)


def test_the_command_searches_with_the_beams_that_its_slots_hold(model, bundle, real_piston, refused, tmp_path):
    path = write_sound(tmp_path / "sound.wav", SECONDS, 0)
    words = ("run", bundle, "--audio", path, "--language", "en", "--json", "--quiet", "--num-beams", "3")
    result = real_piston(*words, "--max-batch", "3", "--length-penalty", "0.5")
    assert (result.status, result.err) == (0, "")
    beams = BeamParams(num_beams=3, length_penalty=0.5)
    assert json.loads(result.out) == model.transcribe(path, language="en", beams=beams).to_json()


def test_the_command_refuses_more_beams_than_slots_and_options_without_beams(bundle, real_piston, tmp_path):
    path = write_sound(tmp_path / "sound.wav", 0.5, 0)
    result = real_piston("run", bundle, "--audio", path, "--num-beams", "3", "--quiet")
    assert (result.status, result.out) == (2, "")
    assert result.err.startswith("error: num_beams is 3, but the engine has 2 free slots; load with a larger max_batch")
    result = real_piston("run", bundle, "--audio", path, "--length-penalty", "0.5")
    assert result.err == "error: --length-penalty needs --num-beams.\n"
