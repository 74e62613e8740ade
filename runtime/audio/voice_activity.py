"""Where in an audio somebody speaks: by Silero's network, or by loudness alone.

Chunks of 32 ms get scores from 0 to 1, and scores become clips by the rules of Silero VAD
(https://github.com/snakers4/silero-vad): speech begins at a chunk whose score reaches the threshold, and ends where the
score falls `HYSTERESIS` below it and does not reach it again for `min_silence` seconds.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import check_fields
from piston.core.errors import MissingExtraError, MisuseError
from piston.runtime.audio.resample import Samples

RATE = 16_000  # samples a second
CHUNK, CONTEXT = 512, 64  # samples that get a score, and those before them that the network reads as well
HYSTERESIS = 0.15
BLOCK = 256  # chunks of a run of the network: 8 seconds
# Of loudness: decibels above the quietest tenth of an audio at which a chunk is as likely speech as not, and the least
# loudness that this tenth is taken to have.
LOUDER, FLOOR, QUIETEST = 12.0, -60.0, 0.1
PACKAGE, NETWORK = "silero_vad", "data/silero_vad_16k_sequence.onnx"

VadMethod = Literal["silero", "energy"]
Clip = tuple[float, float]
Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class VadOptions:
    """Voice activity detection.

    Args:
        method: "silero", the network that the package silero-vad brings; or "energy", louder than the quietest tenth of
            the audio, which takes music and other noise that comes and goes for speech.
        threshold: score from which a chunk is speech, above 0 and at most 1.
        min_speech: seconds; a clip that is not longer is left out.
        min_silence: seconds without speech that end a clip.
        padding: seconds that are kept before and after a clip.

    Raises:
        MisuseError: a value is out of its range.
    """

    method: VadMethod = "silero"
    threshold: float = 0.5
    min_speech: float = 0.1
    min_silence: float = 2.0
    padding: float = 0.4

    def __post_init__(self) -> None:
        """Check the values."""
        check_fields(self)
        if not 0 < self.threshold <= 1:
            raise MisuseError(f"The threshold of voice activity is {self.threshold}; it must be above 0, at most 1.")
        for name in ("min_speech", "min_silence", "padding"):
            if not 0 <= (value := getattr(self, name)) < np.inf:
                raise MisuseError(f"{name} of voice activity is {value}; it must be a time in seconds, at least 0.")


@dataclass(slots=True)
class VoiceActivity:
    """Scores an audio block by block, then tells the clips in which somebody speaks.

    Raises:
        MissingExtraError: the method is "silero", and silero-vad is not installed.
    """

    options: VadOptions
    _score: Callable[[Samples], Scores] = field(init=False)
    _scores: list[Scores] = field(init=False, default_factory=list)
    _held: Samples = field(init=False, default_factory=lambda: np.zeros(0, np.float32))

    def __post_init__(self) -> None:
        self._score = _Silero() if self.options.method == "silero" else _decibels

    def take(self, block: Samples) -> None:
        """Score float32 [samples] of RATE."""
        samples = np.concatenate([self._held, block])
        chunks = samples[: len(samples) // CHUNK * CHUNK].reshape(-1, CHUNK)
        self._scores += [self._score(chunks[start : start + BLOCK]) for start in range(0, len(chunks), BLOCK)]
        self._held = samples[chunks.size :]

    def clips(self) -> list[Clip]:
        """Start and end of each clip, in seconds, in order; they do not overlap. The audio ends here."""
        seconds = (sum(map(len, self._scores)) * CHUNK + len(self._held)) / RATE
        if len(self._held):
            self.take(np.zeros(CHUNK - len(self._held), np.float32))
        scores = np.concatenate([np.zeros(0), *self._scores])
        if self.options.method == "energy" and len(scores):
            floor = max(float(np.quantile(scores, QUIETEST)), FLOOR)
            scores = (scores - floor) / (2 * LOUDER)
        return clips_of(scores, self.options, seconds)


def clips_of(scores: Scores, options: VadOptions, seconds: float) -> list[Clip]:
    """Clips by the scores of chunks, float64 [chunks], of an audio of `seconds`."""
    clips = list[Clip]()
    start: int | None = None
    quiet: int | None = None  # the chunk from which nothing has reached the threshold

    def add(end: int) -> None:
        assert start is not None
        first, last = start * CHUNK / RATE, min(end * CHUNK / RATE, seconds)
        if last - first <= options.min_speech:
            return
        first, last = max(first - options.padding, 0.0), min(last + options.padding, seconds)
        joins = bool(clips) and first <= clips[-1][1]
        clips.append((clips.pop()[0] if joins else first, last))

    for place, score in enumerate(scores.tolist()):
        if score >= options.threshold:
            start, quiet = place if start is None else start, None
        elif start is not None and (quiet is not None or score < options.threshold - HYSTERESIS):
            quiet = place if quiet is None else quiet
            if (place - quiet) * CHUNK >= options.min_silence * RATE:
                add(quiet)
                start = quiet = None
    if start is not None:
        add(len(scores) if quiet is None else quiet)
    return clips


def _decibels(chunks: Samples) -> Scores:
    """Loudness of float32 [chunks, CHUNK], float64 [chunks]; a sine from -1 to 1 is at -3."""
    return np.asarray(10 * np.log10(np.mean(np.square(chunks, dtype=np.float64), axis=1) + 1e-12))


class _Silero:
    """Silero's network, which keeps the state of an LSTM and the end of the last chunk between runs."""

    def __init__(self) -> None:
        import onnxruntime

        spec = find_spec(PACKAGE)  # runs nothing of the package, which imports torch
        places = [Path(place) / NETWORK for place in (spec.submodule_search_locations or ())] if spec else []
        path = next((place for place in places if place.is_file()), None)
        if path is None:
            raise MissingExtraError(
                "Voice activity detection by Silero needs the network of silero-vad 6.2.3 or newer: "
                "pip install --no-deps silero-vad (its torch is not needed), or choose energy."
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._state = {name: np.zeros((1, 1, 128), np.float32) for name in ("h", "c")}
        self._context = np.zeros(CONTEXT, np.float32)

    def __call__(self, chunks: Samples) -> Scores:
        """The scores of chunks that follow those before, float32 [chunks, CHUNK] -> float64 [chunks]."""
        contexts = np.vstack([self._context, chunks[:-1, -CONTEXT:]])
        self._context = chunks[-1, -CONTEXT:]
        feeds = {"input": np.hstack([contexts, chunks]), **self._state}
        scores, self._state["h"], self._state["c"] = self._session.run(["speech_probs", "hn", "cn"], feeds)
        return np.asarray(scores, np.float64)
