"""Golden sounds of speech models: a build puts them into the bundle, and `piston verify` listens to them again."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.golden import GoldenAnswer
from piston.core.bundle.manifest import Manifest
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.made_sounds import write_voice
from piston.runtime.audio.reading import read_audio
from piston.runtime.audio.transcribe_options import SpeechTokens, TranscribeOptions, prompt_of
from piston.runtime.audio.windows import MelWindows
from piston.runtime.backends.engine import Source
from piston.runtime.verify_outputs import numbers_of

SECONDS = 3.0  # of a sound, or a window where that is shorter
ENGLISH = "en"
NUM_VALUES = 32  # of each output of the encoder


def write_sounds(directory: Path, manifest: Manifest) -> list[GoldenAnswer]:
    """Write verify.N.wav; for each an answer without tokens yet, to a prompt for text or for text with timestamps."""
    features, asked = LogMel.of(manifest.settings["features"]), list[GoldenAnswer]()
    for number, prompt in enumerate(_prompts(manifest)):
        name = f"verify.{number}.wav"
        write_voice(directory / name, min(SECONDS, features.window_seconds), features.rate, seed=number)
        asked.append(GoldenAnswer(prompt=name, prompt_ids=tuple(prompt), token_ids=(), margins=(), audio=name))
    return asked


def least_length(manifest: Manifest) -> int:
    """Positions of a decoder in which the longest prompt and one token of an answer fit."""
    return max(map(len, _prompts(manifest))) + 1


def _prompts(manifest: Manifest) -> list[list[int]]:
    """Without timestamps and with them."""
    tokens = SpeechTokens(**manifest.settings["speech"])
    return [
        prompt_of(tokens, TranscribeOptions(timestamps=timestamps), language_of(tokens), ())
        for timestamps in (False, True)
    ]


def language_of(tokens: SpeechTokens) -> str:
    """A language that the model knows, for a sound that is in none."""
    return ENGLISH if ENGLISH in tokens.languages or not tokens.languages else min(tokens.languages)


def sound_source(path: Path, manifest: Manifest) -> Source:
    """What the encoder reads of a sound of one window.

    Raises:
        MisuseError: it cannot be read.
    """
    features, positions = LogMel.of(manifest.settings["features"]), manifest.cross.num_positions
    assert positions is not None
    window, _ = MelWindows(partial(read_audio, path, features.rate), features).at(0)
    return Source({"audio": window}, hashlib.sha256(window.tobytes()).digest(), positions)


def encoded(engine: Any, sources: Sequence[Source]) -> list[dict[str, NDArray[np.float64]]]:
    """Numbers of each output of an engine's encoder for sounds that it hears in one batch."""
    names = sources[0].feeds
    found = engine.encoder.run({name: np.concatenate([source.feeds[name] for source in sources]) for name in names})
    return [
        {name: numbers_of(array[index], NUM_VALUES) for name, array in found.items()} for index in range(len(sources))
    ]
