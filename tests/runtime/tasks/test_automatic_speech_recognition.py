import gc
import io
import json
import os
import re
import subprocess
import sys
import threading
import wave

import numpy as np
import pytest
import torch
from speech import (
    CONTEXT,
    HEADS,
    IDS,
    RATE,
    features_of,
    make_whisper,
    segments_of,
    sound,
    words_of,
    write_samples,
    write_whisper_checkpoint,
)
from transformers import GenerationMixin
from transformers.models.whisper.generation_whisper import _dynamic_time_warping, _median_filter

from piston.cli.main import main
from piston.core.errors import CheckpointError, MisuseError
from piston.export import export_model
from piston.runtime import load
from piston.runtime.audio.made_sounds import made_voice
from piston.runtime.audio.voice_activity import VadOptions

QUIET = {"temperatures": (0.0,), "compression_ratio_threshold": None, "logprob_threshold": None}


@pytest.fixture(scope="module")
def whisper():
    return make_whisper()


@pytest.fixture(scope="module")
def bundle(toys):
    return toys.built(toys.exported(write_whisper_checkpoint), max_batch=2)


@pytest.fixture(scope="module")
def model(bundle):
    with load(bundle) as opened:
        yield opened


@pytest.mark.parametrize("seed", range(4))
def test_segments_of_a_long_audio_are_those_of_transformers(model, whisper, seed):
    samples = sound(2.7, seed)
    # transformers also gives what the model says of the silence behind the end.
    expected = [item for item in segments_of(whisper, samples) if words_of(item[2]) and item[0] < 2.7]
    found = model.transcribe((samples, RATE), language="en", **QUIET).segments
    assert [(round(one.start, 2), round(one.end, 2), words_of(one.token_ids)) for one in found] == [
        (start, end, words_of(ids)) for start, end, ids in expected
    ]


def test_the_language_is_the_likeliest_of_transformers(model, whisper):
    for seed in range(4):
        samples = sound(0.9, seed)
        (expected,) = whisper.detect_language(input_features=features_of(samples)).tolist()
        found = model.transcribe((samples, RATE), **QUIET).language
        assert IDS[f"<|{found}|>"] == expected


def test_the_task_and_the_language_are_in_the_prompt(model, whisper):
    samples = sound(2.2, 5)
    for options in ({"language": "de"}, {"language": "en", "task": "translate"}):
        expected = [words_of(item[2]) for item in segments_of(whisper, samples, **options) if item[0] < 2.2]
        found = [words_of(one.token_ids) for one in model.transcribe((samples, RATE), **options, **QUIET).segments]
        assert found == [ids for ids in expected if ids]


def plain(whisper, samples):
    """What transformers generates behind the prompt for text without timestamps, with the scores of each token.

    Its generate for Whisper cuts at timestamps all the same, and goes round for ever where the model says them.
    """
    features = features_of(samples)
    prompt = [IDS[f"<|{name}|>"] for name in ("startoftranscript", "en", "transcribe", "notimestamps")]
    return GenerationMixin.generate(
        whisper,
        features,
        decoder_input_ids=torch.tensor([prompt]),
        max_new_tokens=CONTEXT - len(prompt),
        output_scores=True,
        return_dict_in_generate=True,
    )


@pytest.fixture(scope="module")
def spoken(whisper):
    """A sound that the model has words for, and what transformers generates."""
    for seed in range(40):
        found = plain(whisper, samples := sound(0.9, seed))
        if words_of(found.sequences[0, 4:].tolist()):
            return samples, found
    raise AssertionError


def test_text_without_timestamps_is_that_of_transformers(model, spoken):
    samples, expected = spoken
    (found,) = model.transcribe((samples, RATE), language="en", timestamps=False, **QUIET).segments
    assert words_of(found.token_ids) == words_of(expected.sequences[0, 4:].tolist())
    assert (found.start, found.end) == (0, 1)


def test_the_average_log_probability_is_over_the_tokens_that_were_allowed(model, spoken):
    samples, expected = spoken
    (segment,) = model.transcribe((samples, RATE), language="en", timestamps=False, **QUIET).segments
    ids = expected.sequences[0, -len(expected.scores) :]
    logprobs = [scores[0].log_softmax(-1)[token].item() for scores, token in zip(expected.scores, ids, strict=True)]
    assert segment.avg_logprob == pytest.approx(np.mean(logprobs), abs=1e-4)


def test_each_token_ends_where_the_attention_of_transformers_goes_on(model, whisper):
    features = features_of(sound(0.9, 2))
    prompt, ids = [IDS["<|startoftranscript|>"], IDS["<|en|>"]], [0, 5, 3, 20, 7, 8, 1, 2]
    whisper.set_attn_implementation("eager")
    with torch.no_grad():
        output = whisper(features, decoder_input_ids=torch.tensor([prompt + ids]), output_attentions=True)
    weights = torch.stack([output.cross_attentions[layer][0, head] for layer, head in HEADS])[
        None, :, len(prompt) :, :45
    ]
    weights = (weights - weights.mean(-2, keepdim=True)) / weights.std(-2, keepdim=True, unbiased=False)
    matrix = _median_filter(weights, 7).mean(dim=1)[0].double().numpy()
    tokens, positions = _dynamic_time_warping(-matrix)
    expected = positions[np.pad(np.diff(tokens), (1, 0), constant_values=1).astype(bool)] * 0.02
    stream = model.stream((sound(0.9, 2), RATE), language="en", word_timestamps=True, **QUIET)
    np.testing.assert_allclose(stream._decoder.token_ends(features.numpy(), prompt, ids, 90), expected)
    stream.close()


def test_words_have_times_in_order_within_their_audio(model):
    segments = model.transcribe((sound(2.7, 1), RATE), language="en", word_timestamps=True, **QUIET).segments
    spoken = [word for segment in segments for word in segment.words]
    assert "".join(word.text for word in spoken) == "".join(segment.text for segment in segments)
    for segment in segments:
        starts = [word.start for word in segment.words]
        assert starts == sorted(starts)
        assert all(word.start <= word.end for word in segment.words)
    assert all(0 < word.probability <= 1 for word in spoken)


def test_silence_gives_nothing(model):
    assert model.transcribe((np.zeros(3 * RATE, np.float32), RATE)).text == ""


def test_the_same_audio_gives_the_same_text_at_any_temperature(model):
    samples = sound(1.7, 2)
    first, again = (model.transcribe((samples, RATE), language="en", temperatures=(0.9,)) for _ in range(2))
    assert first == again


def test_slots_are_given_back(model):
    free = model.engine.cache.num_free
    model.transcribe((sound(1.5), RATE), language="en", **QUIET)
    stream = model.stream((sound(2.5), RATE), language="en", **QUIET)
    next(stream, None)
    stream.close()
    assert model.engine.cache.num_free == free
    left = model.stream((sound(2.5), RATE), language="en", **QUIET)
    next(left, None)
    del left  # as a loop that is broken off leaves it
    gc.collect()
    assert model.engine.cache.num_free == free


class LeftError(Exception):
    """Nobody waits."""


@pytest.mark.parametrize("allowed", [0, 1, 4, 9])
def test_what_on_step_raises_ends_the_work_before_the_next_run(model, monkeypatch, allowed):
    """The calls: of two passes over the audio, then one before each run of a graph."""
    runs, free = [], model.engine.cache.num_free
    for name in ("encode", "prefill", "step"):
        whole = getattr(model.engine, name)
        monkeypatch.setattr(
            model.engine, name, lambda *given, whole=whole, **more: (runs.append(1), whole(*given, **more))[1]
        )

    def on_step():
        if len(runs) >= allowed:
            raise LeftError

    with pytest.raises(LeftError):
        model.transcribe((sound(2.7, 1), RATE), language="en", on_step=on_step, **QUIET)
    assert (len(runs), model.engine.cache.num_free) == (allowed, free)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"language": "xx"}, "it knows: de, en"),
        ({"language": "en", "beams": 4}, "beams"),
        ({"language": 3}, "language is 3; it must be a string or None"),
        ({"timestamps": "word"}, "timestamps is 'word'; it must be True or False"),
        ({"temperatures": 0.0}, "temperatures is 0.0; it must be a list of numbers"),
        ({"temperatures": ()}, "temperatures is empty"),
        ({"initial_prompt": 3}, "initial_prompt is 3; it must be a string or None"),
        ({"on_step": 3}, "on_step is 3; it must be a function"),
        ({"language": "en", "initial_prompt": " ".join(["sea"] * 60), "condition_on_previous": True}, None),
    ],
)
def test_options_that_do_not_fit_are_refused(model, options, reason):
    if reason is None:
        assert model.transcribe((sound(0.9), RATE), **options, **QUIET).language == "en"
        return
    with pytest.raises(MisuseError, match=reason):
        model.transcribe((sound(0.9), RATE), **options)


WHAT = "a path, the bytes of a file, or a tuple of samples and their rate"


@pytest.mark.parametrize(
    ("audio", "reason"),
    [
        (3, f"audio is 3; it must be {WHAT}"),
        (np.zeros(8, np.float32), f"audio is an array [8] of float32; it must be {WHAT}"),
        ([0.5, 0.5], f"audio is [0.5, 0.5]; it must be {WHAT}"),
        ((np.zeros(8, np.float32), "16000"), "audio[1] is '16000'; it must be an integer"),
    ],
)
def test_what_is_no_audio_is_refused(model, audio, reason):
    with pytest.raises(MisuseError, match=re.escape(reason)):
        model.transcribe(audio)


@pytest.fixture
def path(tmp_path):
    """A WAV file of 2.7 seconds."""
    with wave.open(str(tmp_path / "sound.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound(2.7, 1) * 20_000).astype("<i2").tobytes())
    return tmp_path / "sound.wav"


def test_a_pipe_and_standard_input_are_read_once_and_give_the_text_of_the_file(model, bundle, path, tmp_path):
    expected = model.transcribe(path, language="en", **QUIET)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    writer.start()
    assert model.transcribe(pipe, language="en", **QUIET) == expected
    writer.join()
    words = [sys.executable, "-m", "piston.cli.main", "run", str(bundle), "--language", "en", "--json", "--quiet"]
    outputs = [
        subprocess.run([*words, "--audio", name], input=data, capture_output=True, check=True).stdout
        for name, data in ((str(path), b""), ("-", path.read_bytes()))
    ]
    assert outputs[0] == outputs[1]


@pytest.fixture(scope="module")
def voice_in_noise():
    """Six seconds of faint noise, and from second 2 to 4 a voice."""
    samples = (np.random.default_rng(0).standard_normal(6 * RATE) * 0.003).astype(np.float32)
    samples[2 * RATE : 4 * RATE] += made_voice(2, RATE)
    return samples


@pytest.mark.parametrize("method", ["silero", "energy"])
def test_with_voice_activity_detection_only_speech_is_read(model, voice_in_noise, method):
    options = {"language": "en", **QUIET}
    starts = [one.start for one in model.transcribe((voice_in_noise, RATE), **options).segments]
    assert min(starts) < 1  # the toy finds text in noise
    assert max(starts) >= 5
    found = model.transcribe((voice_in_noise, RATE), vad=VadOptions(method=method), **options)
    assert found.segments
    assert all(1.5 < one.start < one.end < 4.6 for one in found.segments)
    assert found.duration == 6
    nothing = model.transcribe((voice_in_noise[: 2 * RATE], RATE), vad=VadOptions(method=method), **options)
    assert (nothing.text, nothing.segments) == ("", ())


def test_the_command_leaves_out_where_nobody_speaks(bundle, voice_in_noise, tmp_path, capsys):
    path = write_samples(tmp_path / "voice.wav", voice_in_noise)
    words = ["run", str(bundle), "--audio", str(path), "--language", "en", "--json", "--quiet"]
    assert main([*words, "--vad", "silero", "--vad-padding", "0.1"]) == 0
    assert all(one["start"] > 1.8 for one in json.loads(capsys.readouterr().out)["segments"])
    assert main([*words, "--vad", "silero", "--vad-threshold", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["segments"] == []
    assert main([*words, "--vad-min-silence", "1"]) == 2
    assert capsys.readouterr().err == "error: --vad-min-silence needs --vad.\n"


@pytest.mark.parametrize("audio", ["-", "FILE"])
def test_audio_without_a_byte_is_refused(bundle, tmp_path, monkeypatch, capsys, audio):
    (tmp_path / "FILE").write_bytes(b"")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    given = "-" if audio == "-" else str(tmp_path / audio)
    assert main(["run", str(bundle), "--audio", given, "--quiet"]) == 2
    name = "Standard input" if audio == "-" else given
    assert capsys.readouterr().err.startswith(f"error: {name} is empty")


def test_times_of_words_need_a_format_that_shows_them(bundle, path, capsys):
    assert main(["run", str(bundle), "--audio", str(path), "--timestamps", "word"]) == 2
    assert "--format text shows no times" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "srt", "vtt", "json"])
def test_the_command_prints_every_format(bundle, form, path, capsys):
    assert main(["run", str(bundle), "--audio", str(path), "--language", "en", "--format", form, "--quiet"]) == 0
    out = capsys.readouterr().out
    if form == "json":
        assert set(json.loads(out)) == {"text", "language", "duration", "segments"}
    else:
        begins = {"text": "", "srt": "1\n00:00:00,", "vtt": "WEBVTT\n\n"}[form]
        assert out.startswith(begins)
        assert out.strip()


def test_features_that_do_not_fit_the_model_are_refused(tmp_path):
    write_whisper_checkpoint(tmp_path / "checkpoint", chunk_length=2)
    with pytest.raises(
        CheckpointError, match="makes windows of 20 bins and 200 frames, and its config reads 20 and 100"
    ):
        export_model(tmp_path / "checkpoint", tmp_path / "model")


def test_the_bundle_holds_what_the_decoder_can(model):
    assert model.engine.cache.capacity == CONTEXT
