from contextlib import closing

import numpy as np
import pytest
import torch
from speech import END, IDS, MELS, RATE, sound, write_sound
from transformers import WhisperFeatureExtractor

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.encoder_decoders import open_model
from piston.evaluation.examples import Example
from piston.evaluation.tasks.automatic_speech_recognition import compare, forced_answers

PROMPT = [IDS["<|startoftranscript|>"], IDS["<|en|>"], IDS["<|transcribe|>"]]


def answers_of(directory, examples, num_answers=9):
    with closing(open_model(directory, max_source=0)) as model:
        return forced_answers(model, examples, num_answers, lambda _: None)


def test_audio_without_a_text_is_transcribed_window_by_window_as_transformers_does(speech_model, tmp_path):
    directory, model = speech_model
    path = write_sound(tmp_path / "a.wav", 0.9, 3)
    (found,) = answers_of(directory, [Example(source=path, languages=("en",))])
    extractor = WhisperFeatureExtractor(feature_size=MELS, chunk_length=1)
    samples = (sound(0.9, 3) * 20_000).astype("<i2").astype(np.float32) / 32_768  # as in the file
    features = extractor(samples, sampling_rate=RATE, return_tensors="pt").input_features
    np.testing.assert_allclose(found.source.feeds["audio"], features.numpy(), atol=1e-4)
    window = torch.from_numpy(found.source.feeds["audio"])
    expected = model.generate(window, language="en", task="transcribe", return_timestamps=True, do_sample=False)
    ids = expected["sequences"][0] if isinstance(expected, dict) else expected[0]
    kept = [token for token in ids.tolist() if token != END and token not in PROMPT]
    # Where segments of a window are through, transformers begins anew; until there both say the same.
    assert list(found.token_ids)[:16] == kept[:16]
    assert list(found.prompt_ids) == PROMPT


def test_an_audio_of_many_windows_gives_as_many_answers_as_are_wanted(speech_model, tmp_path):
    path = write_sound(tmp_path / "a.wav", 4.5, 5)
    found = answers_of(speech_model[0], [Example(source=path)] * 2, 3)
    assert len(found) == 3
    assert len({answer.source.key for answer in found}) == 3
    values = compare(speech_model[0], speech_model[0], found, Progress(quiet=True)).values
    assert values["kl"] == pytest.approx(0, abs=1e-6)


def test_a_text_stands_behind_the_prompt_for_text_without_timestamps(speech_model, tmp_path):
    path = write_sound(tmp_path / "a.wav", 0.9)
    (found,) = answers_of(speech_model[0], [Example(source=path, target="Berlin", languages=("de",))])
    assert list(found.prompt_ids) == [PROMPT[0], IDS["<|de|>"], PROMPT[2], IDS["<|notimestamps|>"]]
    assert found.token_ids == (IDS["\u0120Berlin"],)


def test_a_text_of_more_than_one_window_is_refused(speech_model, tmp_path):
    path = write_sound(tmp_path / "a.wav", 1.5)
    with pytest.raises(MisuseError, match=r"takes 1\.5 s and the model reads 1 s at once"):
        answers_of(speech_model[0], [Example(source=path, target="Berlin", languages=("de",))])
