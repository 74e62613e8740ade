"""What was said, and when: the result of speech recognition, and the formats that it is written in."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Word:
    """One word with the punctuation at it; seconds from the start of the audio."""

    text: str
    start: float
    end: float
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A piece of text; `start` and `end` are seconds from the start of the audio.

    `avg_logprob` is the mean over the tokens of the window that the segment is of, and `no_speech_prob` the probability
    that this window holds no speech. `words` is empty unless word timestamps were asked for.
    """

    start: float
    end: float
    text: str
    token_ids: tuple[int, ...]
    avg_logprob: float
    no_speech_prob: float
    temperature: float
    compression_ratio: float
    words: tuple[Word, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the field names of OpenAI's verbose_json."""
        fields = dataclasses.asdict(self)
        fields["tokens"] = list(fields.pop("token_ids"))
        fields["words"] = [{"word": word.text, "start": word.start, "end": word.end} for word in self.words]
        return fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Transcription:
    """The text of a whole audio."""

    text: str
    language: str | None
    segments: tuple[Segment, ...]
    duration: float  # seconds of audio

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the field names of OpenAI's verbose_json; `words` only where their times were asked for."""
        segments = [{"id": index, **segment.to_json()} for index, segment in enumerate(self.segments)]
        whole = {"text": self.text, "language": self.language, "duration": self.duration, "segments": segments}
        words = [word for segment in segments for word in segment["words"]]
        return whole | ({"words": words} if words else {})


def to_srt(segments: Iterable[Segment]) -> Iterator[str]:
    """SubRip: one numbered block a segment, each ending in an empty line."""
    for number, segment in enumerate(segments, 1):
        times = f"{_clock(segment.start, ',')} --> {_clock(segment.end, ',')}"
        yield f"{number}\n{times}\n{_one_block(segment.text)}\n\n"


def to_vtt(segments: Iterable[Segment]) -> Iterator[str]:
    """WebVTT (W3C): the header, then one cue a segment, each ending in an empty line."""
    yield "WEBVTT\n\n"
    for segment in segments:
        text = _one_block(segment.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        yield f"{_clock(segment.start, '.')} --> {_clock(segment.end, '.')}\n{text}\n\n"


def by_words(segments: Iterable[Segment]) -> Iterator[Segment]:
    """Each word as a segment of its own, for subtitles that follow the voice."""
    for segment in segments:
        for word in segment.words:
            yield dataclasses.replace(segment, start=word.start, end=word.end, text=word.text, words=(word,))


def joined(segments: Sequence[Segment]) -> str:
    """The whole text."""
    return "".join(segment.text for segment in segments).strip()


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, thousandths = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{thousandths // 1000:02}{point}{thousandths % 1000:03}"


def _one_block(text: str) -> str:
    """Without empty lines, which would end the block, and without an arrow, which would be read as times."""
    return "\n".join(line.strip() for line in text.splitlines() if line.strip()).replace("-->", "->")
