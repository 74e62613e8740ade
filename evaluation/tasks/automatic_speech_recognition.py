"""Speech recognition: how far a model moved from the float model's transcripts, and the word error rate."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.evaluation.encoder_decoders import KL, TOP1, ForcedAnswer, compare_answers, compare_engines
from piston.evaluation.examples import Example, read_audio_list, with_targets
from piston.evaluation.references import WER, word_error_rate
from piston.evaluation.tasks import Comparison
from piston.runtime.audio.reading import read_audio
from piston.runtime.audio.transcribe import Decoded, transcribe
from piston.runtime.audio.transcribe_options import TranscribeOptions, prompt_of
from piston.runtime.audio.window_decoder import WindowDecoder
from piston.runtime.audio.windows import MelWindows
from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer

METRICS = {metric.name: metric for metric in (KL, TOP1, WER)}
DEFAULTS = {"fp": "kl<=0.001", "w8": "kl<=0.02", "w8a8": "kl<=0.1", "w4": "kl<=0.3"}
MODEL = SpeechRecognizer
SOURCES = "windows of audio"
read_examples = read_audio_list


def compare(candidate: Path, reference: Path, answers: Sequence[ForcedAnswer], progress: Progress) -> Comparison:
    """The next tokens of two model directories along the same transcripts."""
    return compare_answers(candidate, reference, answers, progress, SOURCES)


def compare_models(
    candidate: SpeechRecognizer, reference: SpeechRecognizer, examples: Sequence[Example], progress: Progress
) -> Comparison:
    """The same of loaded models, along the reference's greedy transcripts."""
    answers = forced_answers(reference, examples, sys.maxsize, lambda _: None)
    return compare_engines(candidate.engine, reference.engine, answers, progress, SOURCES)


def quality(model: SpeechRecognizer, path: Path) -> Mapping[str, float]:
    """The word error rate on a file's examples, texts normalized as Whisper does."""
    examples = with_targets(read_examples(path), path)
    found = [
        model.transcribe(example.source, language=example.languages[0] if example.languages else None).text
        for example in examples
    ]
    return {WER.name: word_error_rate(found, [example.target or "" for example in examples])}


def forced_answers(
    model: SpeechRecognizer, examples: Sequence[Example], num_answers: int, on_step: Callable[[int], None]
) -> list[ForcedAnswer]:
    """The texts of examples, and the model's own greedy transcripts, with timestamps, of audio that has none.

    Args:
        model: in float.
        examples: audio of any length; where a text is given, of one window.
        num_answers: at most; an audio has as many as it has windows.
        on_step: gets the number of answers that are done.

    Raises:
        MisuseError: an audio cannot be read, has a text and more than one window, or is in an unknown language.
        MissingExtraError: it needs PyAV, which is not installed.
    """
    found = list[ForcedAnswer]()
    for example in examples:
        windows = MelWindows(partial(read_audio, example.source, model.features.rate), model.features)
        language = example.languages[0] if example.languages else None
        decoder = _Recorder(model, language)
        try:
            if example.target is not None:
                found.append(_given(model, example, windows, decoder))
            else:
                for _ in transcribe(
                    windows, decoder, model.tokens, TranscribeOptions(language=language, temperatures=(0.0,))
                ):
                    if len(found) + len(decoder.answers) >= num_answers:
                        break
        finally:
            decoder.close()
        found += decoder.answers
        on_step(min(len(found), num_answers))
        if len(found) >= num_answers:
            break
    return found[:num_answers]


class _Recorder(WindowDecoder):
    """Keeps each window with what was read and answered."""

    def __init__(self, model: SpeechRecognizer, language: str | None) -> None:
        super().__init__(model, language)
        self.answers: list[ForcedAnswer] = []

    def decode(self, window: NDArray[np.float32], prompt_ids: Sequence[int], **options: Any) -> Decoded:
        """See Decoder."""
        decoded = super().decode(window, prompt_ids, **options)
        self.answers.append(ForcedAnswer(self.source(window), tuple(prompt_ids), decoded.token_ids))
        return decoded


def _given(model: SpeechRecognizer, example: Example, windows: MelWindows, decoder: WindowDecoder) -> ForcedAnswer:
    """The text of an example behind the prompt for text without timestamps."""
    assert example.target is not None
    if windows.num_frames > windows.settings.window_frames:
        raise MisuseError(
            f"{example.source} takes {windows.seconds:.1f} s and the model reads {windows.settings.window_seconds} s "
            "at once: which part of its text belongs to which is not known. Leave its text out, or cut the audio."
        )
    window, _ = windows.at(0)
    language = example.languages[0] if example.languages else None
    if language is None and model.tokens.languages:
        language = decoder.detect_language(window)
    prompt_ids = prompt_of(model.tokens, TranscribeOptions(timestamps=False), language, ())
    ids = model.text_ids(" " + example.target.strip())
    room = min(model.tokens.context, model.engine.cache.capacity) - len(prompt_ids)
    return ForcedAnswer(decoder.source(window), tuple(prompt_ids), tuple(ids[:room]))
