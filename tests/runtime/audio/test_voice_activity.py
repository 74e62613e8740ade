import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest

from piston.core.errors import MissingExtraError, MisuseError
from piston.runtime.audio import voice_activity
from piston.runtime.audio.made_sounds import made_voice
from piston.runtime.audio.voice_activity import CHUNK, RATE, VadOptions, VoiceActivity, clips_of

SECOND = CHUNK / RATE  # of a chunk


def noise(seconds, loudness):
    return (np.random.default_rng(0).standard_normal(int(RATE * seconds)) * loudness).astype(np.float32)


@pytest.fixture(scope="module")
def voices():
    """Voices from second 2 to 5 and from 9 to 12, in faint noise, 16.5 seconds in all."""
    samples = noise(16.5, 0.003)
    samples[2 * RATE : 5 * RATE] += made_voice(3, RATE)
    samples[9 * RATE : 12 * RATE] += made_voice(3, RATE, seed=2)
    return samples


def heard(samples, block=10_000, **options):
    activity = VoiceActivity(VadOptions(**options))
    for start in range(0, len(samples), block):
        activity.take(samples[start : start + block])
    return activity.clips()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # by the package
def test_scores_and_clips_are_those_of_the_package_that_brings_the_network(voices):
    import torch
    from silero_vad import get_speech_timestamps, load_silero_vad

    module = load_silero_vad()
    activity = VoiceActivity(VadOptions(min_speech=0.25, min_silence=0.5, padding=0.03))
    activity.take(voices)
    found, scores = activity.clips(), np.concatenate(activity._scores)
    padded = np.concatenate([voices, np.zeros(-len(voices) % CHUNK, np.float32)])
    with torch.no_grad():
        expected = [module(chunk, RATE).item() for chunk in torch.from_numpy(padded).split(CHUNK)]
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    assert max(expected) > 0.9  # there is something to find
    assert min(expected) < 0.1
    options = {"min_speech_duration_ms": 250, "min_silence_duration_ms": 500, "speech_pad_ms": 30}
    spans = get_speech_timestamps(torch.from_numpy(voices), module, sampling_rate=RATE, **options)
    assert len(spans) > 1
    np.testing.assert_allclose(found, [(span["start"] / RATE, span["end"] / RATE) for span in spans])


@pytest.mark.parametrize("method", ["silero", "energy"])
def test_clips_hold_the_voices_and_little_else(voices, method):
    found = heard(voices, method=method, padding=0.4)
    assert len(found) == 2
    for (start, end), (first, last) in zip(found, [(2, 5), (9, 12)], strict=True):
        assert first - 0.6 <= start <= first + 0.1
        assert last - 0.1 <= end <= last + 0.6
    assert heard(voices, method=method, min_silence=5.0) == [(found[0][0], found[1][1])]


@pytest.mark.parametrize("method", ["silero", "energy"])
@pytest.mark.parametrize("samples", [np.zeros(5 * RATE, np.float32), noise(5, 0.1), np.zeros(0, np.float32)])
def test_silence_and_steady_noise_have_no_clip(samples, method):
    assert heard(samples, method=method) == []


@pytest.mark.parametrize("method", ["silero", "energy"])
@pytest.mark.parametrize("block", [511, 512, 1 << 18])
def test_blocks_of_any_size_give_the_same_clips(voices, method, block):
    np.testing.assert_allclose(heard(voices, block, method=method), heard(voices, method=method))


@pytest.mark.parametrize(
    ("scores", "options", "chunks"),
    [
        ("..55..", {}, [(2, 4)]),
        ("..5...5..", {"min_silence": 3 * SECOND}, [(2, 7)]),  # three chunks are as long as it takes
        ("..5....5..", {"min_silence": 3 * SECOND}, [(2, 3), (7, 8)]),
        (".5454..", {}, [(1, 5)]),  # 0.4 is not below 0.35
        (".53535..", {"min_silence": 2 * SECOND}, [(1, 6)]),
        (".53444..", {"min_silence": 2 * SECOND}, [(1, 2)]),  # 0.4 ends no silence
        (".5..555.", {"min_speech": 1.5 * SECOND}, [(4, 7)]),
        (".....55", {}, [(5, 6.5)]),  # to the end of the audio
        ("...5....", {"padding": 2 * SECOND}, [(1, 6)]),
        (".5.....", {"padding": 2 * SECOND}, [(0, 4)]),
        (".5..5...", {"padding": SECOND}, [(0, 6)]),  # what touches is one
        ("..77.5..", {"threshold": 0.6}, [(2, 4)]),
        ("", {}, []),
    ],
)
def test_scores_become_clips(scores, options, chunks):
    defaults = {"min_speech": 0.0, "min_silence": SECOND, "padding": 0.0}
    values = np.array([0.0 if letter == "." else int(letter) / 10 for letter in scores])
    seconds = max(len(scores) - 0.5, 0) * SECOND
    found = clips_of(values, VadOptions(**defaults | options), seconds)
    np.testing.assert_allclose(np.reshape(found, (-1, 2)) / SECOND, np.reshape(chunks, (-1, 2)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.0}, "The threshold of voice activity is 0.0; it must be above 0"),
        ({"threshold": 1.5}, "it must be above 0, at most 1"),
        ({"padding": -1.0}, "padding of voice activity is -1.0; it must be a time in seconds"),
        ({"min_silence": float("nan")}, "min_silence of voice activity is nan"),
        ({"method": "webrtc"}, "method is 'webrtc'; it must be one of 'silero', 'energy'"),
    ],
)
def test_a_value_out_of_range_is_named(options, message):
    with pytest.raises(MisuseError, match=re.escape(message)):
        VadOptions(**options)


def test_without_the_network_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(voice_activity, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"pip install --no-deps silero-vad .* or choose energy"):
        VoiceActivity(VadOptions())


def test_the_network_runs_without_torch_and_without_code_of_its_package():
    assert importlib.util.find_spec("silero_vad") is not None
    program = (
        "import sys; from piston.runtime.audio.voice_activity import VadOptions, VoiceActivity; "
        "VoiceActivity(VadOptions()); assert not {'torch', 'silero_vad'} & {*sys.modules}"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
