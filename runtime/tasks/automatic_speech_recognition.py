"""Speech recognition: a bundle becomes a SpeechRecognizer."""

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from piston.core.arguments import checked_arguments
from piston.core.bundle.interface import ALIGNMENT, DECODER
from piston.core.errors import BundleCorruptError, MisuseError
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.reading import Audio, read_audio, rereadable
from piston.runtime.audio.resample import Samples
from piston.runtime.audio.transcribe import transcribe
from piston.runtime.audio.transcribe_options import SpeechTokens, TranscribeOptions
from piston.runtime.audio.transcription import Segment, Transcription, joined
from piston.runtime.audio.voice_activity import RATE as VAD_RATE
from piston.runtime.audio.voice_activity import Clip, VoiceActivity
from piston.runtime.audio.window_decoder import WindowDecoder
from piston.runtime.audio.windows import MelWindows
from piston.runtime.encoder_decoder import open_encoder_decoder
from piston.runtime.generate.request import check_slots

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.runtime.backends.engine import EncoderDecoderEngine
    from piston.runtime.text.tokenizer import Tokenizer

TASK = "automatic-speech-recognition"


class SpeechRecognizer:
    """A loaded bundle that writes down speech; a context manager that frees the engine.

    One thread at a time may use it.
    """

    TASK = TASK

    def __init__(self, manifest: "Manifest", engine: "EncoderDecoderEngine", tokenizer: "Tokenizer") -> None:
        self.manifest = manifest
        self.engine = engine
        self.tokenizer = tokenizer
        self.target = ""  # of the engine, as the bundle names it
        self.remarks: tuple[str, ...] = ()  # where `load` deviated from what the bundle was built for, and why
        try:
            self.features = LogMel.of(manifest.settings["features"])
            self.tokens = SpeechTokens(**manifest.settings["speech"])
        except (KeyError, TypeError) as problem:
            raise BundleCorruptError(
                f"The manifest of {manifest.model.name} does not describe its speech tokens and features "
                f"({problem}); export it again."
            ) from None

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages that the model knows, such as "de"; empty for one of English alone."""
        return tuple(sorted(self.tokens.languages))

    def transcribe(self, audio: Audio, **options: Any) -> Transcription:
        """The text of an audio of any length; arguments and errors as of `stream`."""
        stream = self.stream(audio, **options)
        segments = tuple(stream)
        return Transcription(
            text=joined(segments), language=stream.language, segments=segments, duration=stream.duration
        )

    @checked_arguments
    def stream(
        self,
        audio: Audio,
        *,
        initial_prompt: str | None = None,
        on_progress: Callable[[float, float], None] = lambda _done, _total: None,
        on_step: Callable[[], None] = lambda: None,
        **options: Any,
    ) -> "SegmentStream":
        """Segments of an audio as they become certain.

        Args:
            audio: a path, the bytes of a file, or samples with their rate; it is read twice.
            initial_prompt: text that sets style and spelling, as if it had been said before each window.
            on_progress: gets seconds done and seconds in all.
            on_step: called before each block of audio is read and before each run of the encoder or the decoder. What
                it raises ends the work, and is raised here or by the stream.
            options: of TranscribeOptions: language, task, timestamps, word_timestamps, condition_on_previous,
                temperatures, thresholds, vad, beams.

        Raises:
            MisuseError: the audio cannot be read, the model does not have the language or task, or there are more
                beams than slots.
            MissingExtraError: the audio needs PyAV, or vad silero-vad, which is not installed.
            EngineError: the backend fails.
        """
        prompt = () if not initial_prompt else tuple(self.text_ids(" " + initial_prompt.strip()))
        try:
            chosen = TranscribeOptions(**options, initial_prompt=prompt)
        except TypeError as problem:
            raise MisuseError(f"transcribe: {problem}.") from None
        if chosen.word_timestamps and ALIGNMENT not in self.manifest.graphs[DECODER].output_names:
            raise MisuseError(
                f"{self.manifest.model.name} has no times of words: its generation_config.json named no "
                "alignment_heads when it was exported."
            )
        if chosen.word_timestamps and not hasattr(self.engine, "around_run"):
            raise MisuseError(f"{self.target} does not tell the times of words; use an engine for ort-cpu (--target).")
        if chosen.beams is not None:
            check_slots(self.engine, chosen.beams.num_beams, self.engine.cache.num_free)
        source, rate = rereadable(audio), self.features.rate

        def blocks() -> Iterator[Samples]:
            for block in read_audio(source, rate):
                on_step()
                yield block

        decoder = WindowDecoder(self, chosen.language, on_step, chosen.beams)
        if chosen.vad is None:
            return SegmentStream(decoder, MelWindows(blocks, self.features), chosen, on_progress)
        if rate != VAD_RATE:
            raise MisuseError(
                f"Voice activity is detected at {VAD_RATE:,} samples a second, and the model reads {rate:,}."
            )
        activity = VoiceActivity(chosen.vad)
        windows = MelWindows(blocks, self.features, activity.take)
        return SegmentStream(decoder, windows, chosen, on_progress, activity.clips())

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a text, without special tokens and timestamps."""
        return [token_id for token_id in self.tokenizer.encode(text) if token_id < self.tokens.end]


class SegmentStream(Iterator[Segment]):
    """The segments of one audio; `language` is known once the first one is there."""

    def __init__(
        self,
        decoder: WindowDecoder,
        windows: MelWindows,
        options: TranscribeOptions,
        on_progress: Callable[[float, float], None],
        clips: Sequence[Clip] | None = None,
    ) -> None:
        self.duration = windows.seconds
        self._decoder = decoder
        segments = transcribe(windows, decoder, decoder.tokens, options, on_progress, clips)
        self._segments = _closing(segments, decoder)

    @property
    def language(self) -> str | None:
        """The code of the language that was given or detected."""
        return self._decoder.language

    def __next__(self) -> Segment:
        return next(self._segments)

    def close(self) -> None:
        """Give the slot back; done at the end of the segments, and where nothing refers to the stream any more."""
        self._segments.close()


def _closing(segments: Iterator[Segment], decoder: WindowDecoder) -> Generator[Segment]:
    try:
        yield from segments
    finally:
        decoder.close()


open_model = partial(open_encoder_decoder, SpeechRecognizer)
