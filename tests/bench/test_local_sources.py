import numpy as np
import pytest
from benched import ticking
from speech import RATE, write_sound

from piston.bench.local_sources import SourceRun, SpeechRun
from piston.runtime import load
from piston.runtime.sampling.beam_params import BeamParams

TEXTS = ["the sea is calm", "wind blows from the north"]


@pytest.fixture(scope="module")
def translator(text_bundle):
    with load(text_bundle) as model:
        yield model


@pytest.fixture(scope="module")
def recognizer(toys, speech_model):
    with load(toys.built(speech_model[0], max_batch=2)) as model:
        yield model


@pytest.mark.parametrize("num_beams", [1, 2])
def test_rows_are_the_models_own_answers_to_the_sources_past_the_end_token(translator, num_beams):
    local, steps = SourceRun(translator, ticking(0.25)), []
    prompts = [translator.tokenizer.encode(text) for text in TEXTS]
    rows = local.run(prompts, 6, lambda: steps.append(1), num_beams)
    beams = None if num_beams == 1 else BeamParams(num_beams=num_beams)
    expected = translator.generate(TEXTS, translator.sampling(max_tokens=6, ignore_eos=True), beams=beams)
    assert rows == [list(completion.token_ids) for completion in expected]
    assert (len(steps), {len(row) for row in rows}) == (6, {6})
    assert local.parts["encode"] == pytest.approx(2 * 0.25)  # a run of the encoder for each source
    assert "sample" in local.parts or num_beams > 1
    assert {"encode", "prefill", "step"}.isdisjoint(vars(translator.engine))


def test_every_window_of_a_sound_gets_the_tokens_that_were_asked_for(recognizer, tmp_path):
    path, steps = write_sound(tmp_path / "sound.wav", 2.5), []
    local = SpeechRun(recognizer, ticking(0.25))
    (ids,) = local.run([[str(path)]], 7, lambda: steps.append(1))
    assert (len(steps), len(ids)) == (3, 3 * 7)  # windows of one second
    assert local.parts == {"encode": pytest.approx(3 * 0.25), "audio": 2.5, "tokens": 21.0}
    assert recognizer.engine.cache.num_free == 2


def test_without_a_length_a_sound_is_transcribed_greedily(recognizer, tmp_path):
    path, steps = write_sound(tmp_path / "sound.wav", 2.5), []
    local = SpeechRun(recognizer)
    (ids,) = local.run([[str(path)]], 0, lambda: steps.append(1))
    segments = recognizer.transcribe(path, temperatures=(0.0,)).segments
    assert ids == [token_id for segment in segments for token_id in segment.token_ids]
    assert (len(steps), local.parts["tokens"]) == (len(segments) + 1, len(ids))
    assert local.parts["audio"] == 2.5


def test_a_sound_without_words_has_no_segments(recognizer, tmp_path):
    path, steps = write_sound(tmp_path / "sound.wav", 1.5), []
    data = bytearray(path.read_bytes())
    data[44:] = bytes(len(data) - 44)  # samples of 0
    path.write_bytes(bytes(data))
    local = SpeechRun(recognizer)
    assert local.run([[str(path)]], 0, lambda: steps.append(1)) == [[]]
    assert (len(steps), local.parts["tokens"], local.parts["encode"]) == (1, 0.0, 0.0)
    assert np.frombuffer(data[44:], "<i2").shape == (1.5 * RATE,)
