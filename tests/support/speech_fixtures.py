"""A tiny Whisper, exported once, and audio files."""

import wave

import pytest
from speech import RATE, make_whisper, sound, write_whisper_checkpoint


def write_sound(path, seconds, seed=0):
    """A WAV file of `sound`."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((sound(seconds, seed) * 20_000).astype("<i2").tobytes())
    return path


@pytest.fixture(scope="session")
def speech_model(toys):
    """A model directory of a seeded Whisper, and transformers' model: (directory, model)."""
    return toys.exported(write_whisper_checkpoint), make_whisper()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """A list of 24 audio files of less than a window, as a file."""
    root = tmp_path_factory.mktemp("sounds")
    names = [write_sound(root / f"{seed}.wav", 0.5 + 0.02 * seed, seed).name for seed in range(24)]
    (root / "clips.txt").write_text("\n".join(names))
    return root / "clips.txt"
