"""A tiny Whisper, exported once, and audio files."""

import pytest


@pytest.fixture(scope="session")
def speech_model(toys):
    """A model directory of a seeded Whisper, and transformers' model: (directory, model)."""
    from speech import make_whisper, write_whisper_checkpoint

    return toys.exported(write_whisper_checkpoint), make_whisper()


@pytest.fixture(scope="session")
def sounds(tmp_path_factory):
    """A list of 24 audio files of less than a window, as a file."""
    from speech import write_clips

    return write_clips(tmp_path_factory.mktemp("sounds"))
