import numpy as np
import pytest
from transformers import WhisperFeatureExtractor

from piston.runtime.audio.log_mel import LogMel, normalized
from piston.runtime.audio.windows import MelWindows

RATE = 16_000


def noise(seconds, seed=0):
    samples = np.random.default_rng(seed).standard_normal(int(RATE * seconds)).astype(np.float32) * 0.1
    return samples * np.linspace(0.001, 1, len(samples), dtype=np.float32)


def reference(samples, mels, **options):
    """transformers' numpy extractor, [frames, mels]."""
    extractor = WhisperFeatureExtractor(feature_size=mels)
    return extractor(samples, sampling_rate=RATE, return_tensors="np", **options).input_features[0].T


@pytest.mark.parametrize("mels", [80, 128])
def test_frames_are_those_of_transformers(mels):
    samples = noise(3.21)
    raw = np.concatenate(list(LogMel(num_mels=mels).raw_frames([samples])))
    expected = reference(samples, mels, truncation=False, padding="longest")
    np.testing.assert_allclose(normalized(raw, raw.max()), expected, atol=1e-4)


def test_cutting_the_samples_into_blocks_changes_no_bit():
    samples, settings = noise(2.0), LogMel(num_mels=80)
    whole = np.concatenate(list(settings.raw_frames([samples])))
    blocks = np.split(samples, [1, 5, 300, 401, 402, 20_000])
    np.testing.assert_array_equal(np.concatenate(list(settings.raw_frames(blocks))), whole)


@pytest.mark.parametrize("samples", [201, 399, 400, 401, 560])
def test_the_shortest_audios_have_the_frames_of_transformers(samples):
    audio = noise(1.0)[-samples:]
    raw = np.concatenate(list(LogMel(num_mels=80).raw_frames([audio])))
    expected = reference(audio, 80, truncation=False, padding="longest")
    np.testing.assert_allclose(normalized(raw, raw.max()), expected, atol=1e-4)


def test_a_short_audio_is_followed_by_silence_as_in_transformers():
    samples = noise(2.5)
    windows = MelWindows(lambda: iter([samples]), LogMel(num_mels=80))
    window, frames = windows.at(0)
    np.testing.assert_allclose(window[0].T, reference(samples, 80), atol=1e-4)
    assert (frames, windows.spoken_frames, windows.seconds) == (3000, 250, 2.5)


def test_windows_of_a_long_audio_are_cuts_of_the_whole_and_end_in_zeros():
    samples = noise(47.3)
    blocks = [samples[start : start + 9_000] for start in range(0, len(samples), 9_000)]
    windows = MelWindows(lambda: iter(blocks), LogMel(num_mels=80))
    expected = reference(samples, 80, truncation=False, padding="longest")
    for start in (0, 1_234, 2_000, 4_000):
        window, frames = windows.at(start)
        assert frames == min(3000, len(expected) - start)
        np.testing.assert_allclose(window[0, :, :frames].T, expected[start : start + 3000], atol=1e-4)
        assert not window[0, :, frames:].any()


def test_what_is_held_does_not_grow_with_the_audio():
    settings = LogMel(num_mels=80)
    windows = MelWindows(lambda: (noise(1.0, seed) for seed in range(300)), settings)
    for start in range(0, 27_000, 2_500):
        windows.at(start)
        assert len(windows._held) < 2 * settings.window_frames
