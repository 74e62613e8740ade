"""The loop over the windows of an audio: decode, judge, cut into segments, go on where the last one ended.

The rules are those of Whisper's reference (Radford et al. 2022, arXiv:2212.04356, section 4.5), with the defaults of
its `transcribe.py` but for one: text of former windows is given to the decoder on request only, as in transformers,
since a repetition in it repeats itself.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.runtime.audio.alignment import words_of
from piston.runtime.audio.timestamps import Span, TimestampRules, cut
from piston.runtime.audio.transcribe_options import SpeechTokens, TranscribeOptions, prompt_of
from piston.runtime.audio.transcription import Segment, Word
from piston.runtime.audio.voice_activity import Clip
from piston.runtime.audio.windows import MelWindows

LEAST = 10  # frames (0.1 s) at the end of an audio that are worth a window
Ends = NDArray[np.float64] | None  # seconds in the window at which each token ends
SILENT = 1e-8  # difference of the encoder's values in a window without any sound at all


@dataclass(frozen=True, slots=True)
class Decoded:
    """What the decoder said of one window: tokens without the end token, and how sure it was.

    Args:
        token_ids: behind the prompt.
        logprobs: of these tokens, and of the end token where there is one.
        no_speech_prob: probability of the token for it behind the start token; 0 where the checkpoint has none.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    no_speech_prob: float

    @property
    def avg_logprob(self) -> float:
        """The mean over the tokens and the end token."""
        return sum(self.logprobs) / max(len(self.logprobs), 1)


class Decoder(Protocol):
    """What the loop needs of a model: everything about engines, sampling and text is behind it."""

    def detect_language(self, window: NDArray[np.float32]) -> str:
        """The code of the likeliest language of a window, float32 [1, mels, frames]."""

    def decode(
        self,
        window: NDArray[np.float32],
        prompt_ids: Sequence[int],
        *,
        temperature: float,
        constraint: TimestampRules | None,
    ) -> Decoded:
        """The tokens behind a prompt."""

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens; special ones have none."""

    def token_ends(
        self, window: NDArray[np.float32], prompt_ids: Sequence[int], token_ids: Sequence[int], frames: int
    ) -> NDArray[np.float64]:
        """Seconds in the window at which each token behind the prompt ends, float64 [tokens]."""


def transcribe(
    windows: MelWindows,
    decoder: Decoder,
    tokens: SpeechTokens,
    options: TranscribeOptions,
    on_progress: Callable[[float, float], None] = lambda _done, _total: None,
    clips: Sequence[Clip] | None = None,
) -> Iterator[Segment]:
    """Segments as they become certain; `on_progress` gets seconds done and seconds in all.

    `clips` are starts and ends in seconds, in order; what is outside them is not read. A clip ends a window.

    Raises:
        MisuseError: the audio is longer than one window and there are to be no timestamps.
    """
    if options.word_timestamps and not options.timestamps:
        raise MisuseError("Times of words need timestamps of segments.")
    if not options.timestamps and windows.num_frames > windows.settings.window_frames:
        raise MisuseError(
            f"The audio takes {windows.seconds:.1f} s; without timestamps at most {windows.settings.window_seconds} s "
            "can be read. Ask for segment timestamps."
        )
    rate = windows.settings.frames_per_second
    frames: list[tuple[int, int | None]] = [(0, None)]
    if clips is not None:
        frames = [(round(start * rate), min(round(end * rate), windows.spoken_frames)) for start, end in clips]
    return _Loop(windows, decoder, tokens, options, options.language).run(frames, on_progress)


@dataclass(slots=True)
class _Loop:
    """One audio under way. `start` is the frame at which the window begins, `former` the text of those before it."""

    windows: MelWindows
    decoder: Decoder
    tokens: SpeechTokens
    options: TranscribeOptions
    language: str | None
    start: int = 0
    former: list[int] = field(default_factory=list)

    @property
    def offset(self) -> float:
        """Seconds at which the window begins."""
        return self.start / self.windows.settings.frames_per_second

    def run(
        self, clips: Sequence[tuple[int, int | None]], on_progress: Callable[[float, float], None]
    ) -> Iterator[Segment]:
        """Segments of clips: the first frame of each, and the one behind its last, or None for the audio's end."""
        for start, end in clips:
            self.start = max(self.start, start)
            yield from self._clip(end, on_progress)
        on_progress(self.windows.seconds, self.windows.seconds)

    def _clip(self, clip_end: int | None, on_progress: Callable[[float, float], None]) -> Iterator[Segment]:
        windows = self.windows
        end = windows.spoken_frames if clip_end is None else clip_end
        while end - self.start >= LEAST:
            on_progress(self.offset, windows.seconds)
            window, frames = windows.at(self.start, clip_end)
            if float(np.ptp(window[:, :, :frames])) < SILENT:
                self.start += frames
                continue
            if self.language is None and self.tokens.languages:
                self.language = self.decoder.detect_language(window)
            prompt_ids = prompt_of(self.tokens, self.options, self.language, self.former)
            result = _accepted(window, prompt_ids, self.decoder, self.tokens, self.options)
            if result is None:
                self.start += frames
                continue
            if self.options.timestamps:
                spans, advance = cut(result.decoded.token_ids, self.tokens.first_timestamp, frames)
            else:
                duration = frames / windows.settings.frames_per_second
                spans, advance = [Span(0.0, duration, result.decoded.token_ids)], frames
            ends = self._token_ends(window, prompt_ids, result.decoded, frames)
            yield from self._segments(spans, result, ends)
            # Text that was found at a high temperature misleads: the reference's rule.
            is_sure = self.options.condition_on_previous and result.temperature <= 0.5  # noqa: PLR2004
            self.former = [*self.former, *(token for span in spans for token in span.token_ids)] if is_sure else []
            self.start += advance if 0 < advance <= frames else frames

    def _segments(self, spans: Sequence[Span], result: "_Result", ends: Ends) -> Iterator[Segment]:
        """Segments that have text and begin within the audio."""
        place = 0
        for span in spans:
            text = self.decoder.text([token for token in span.token_ids if token < self.tokens.end])
            if text.strip() and self.offset + span.start < self.windows.seconds:
                yield Segment(
                    start=round(self.offset + span.start, 3),
                    end=round(self.offset + span.end, 3),
                    text=text,
                    token_ids=span.token_ids,
                    avg_logprob=result.decoded.avg_logprob,
                    no_speech_prob=result.decoded.no_speech_prob,
                    temperature=result.temperature,
                    compression_ratio=result.compression_ratio,
                    words=() if ends is None else self._words(span, place, result.decoded, ends),
                )
            place += len(span.token_ids)

    def _token_ends(
        self, window: NDArray[np.float32], prompt_ids: Sequence[int], decoded: Decoded, frames: int
    ) -> Ends:
        if not self.options.word_timestamps or not decoded.token_ids:
            return None
        spoken = min(frames, self.windows.spoken_frames - self.start)
        return self.decoder.token_ends(window, prompt_ids, decoded.token_ids, spoken)

    def _words(self, span: Span, place: int, decoded: Decoded, ends: NDArray[np.float64]) -> tuple[Word, ...]:
        """The words of a segment whose tokens begin at `place` of what was decoded."""
        places = [place + index for index, token in enumerate(span.token_ids) if token < self.tokens.end]
        ids = [decoded.token_ids[index] for index in places]
        words = []
        for text, parts in words_of(ids, self.decoder.text, self.tokens.end, self.language):
            first, last = places[parts[0]], places[parts[-1]]
            words.append(
                Word(
                    text=text,
                    start=round(self.offset + (float(ends[first - 1]) if first else 0.0), 3),
                    end=round(self.offset + float(ends[last]), 3),
                    probability=float(np.mean(np.exp([decoded.logprobs[places[part]] for part in parts]))),
                )
            )
        return tuple(words)


@dataclass(frozen=True, slots=True)
class _Result:
    decoded: Decoded
    temperature: float
    compression_ratio: float


def _accepted(
    window: NDArray[np.float32],
    prompt_ids: list[int],
    decoder: Decoder,
    tokens: SpeechTokens,
    options: TranscribeOptions,
) -> _Result | None:
    """The first result that is neither repetition nor improbable, else the last; None where nobody speaks."""
    result = None
    for temperature in options.temperatures:
        rules = TimestampRules(no_timestamps=tokens.no_timestamps, end=tokens.end, latest_start=tokens.latest_start)
        constraint = rules if options.timestamps else None
        decoded = decoder.decode(window, prompt_ids, temperature=temperature, constraint=constraint)
        ratio = compression_ratio(decoder.text(decoded.token_ids))
        result = _Result(decoded, temperature, ratio)
        is_unlikely = options.logprob_threshold is not None and decoded.avg_logprob < options.logprob_threshold
        silent = options.no_speech_threshold
        if is_unlikely and silent is not None and decoded.no_speech_prob > silent:
            return None
        repeats = options.compression_ratio_threshold is not None and ratio > options.compression_ratio_threshold
        if not is_unlikely and not repeats:
            break
    return result


def compression_ratio(text: str) -> float:
    """Bytes of a text over those of its zlib form: 1 or less for short texts, high for one that repeats itself."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))
