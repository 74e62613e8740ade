"""Speech recognition: a bundle becomes a SpeechRecognizer."""

import hashlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from piston.core.arguments import checked_arguments
from piston.core.bundle.interface import ALIGNMENT, DECODER
from piston.core.errors import BundleCorruptError, MisuseError
from piston.runtime.audio.alignment import token_times
from piston.runtime.audio.log_mel import LogMel
from piston.runtime.audio.reading import Audio, read_audio, rereadable
from piston.runtime.audio.resample import Samples
from piston.runtime.audio.timestamps import TimestampRules
from piston.runtime.audio.transcribe import Decoded, SpeechTokens, TranscribeOptions, transcribe
from piston.runtime.audio.transcription import Segment, Transcription, joined
from piston.runtime.audio.voice_activity import RATE as VAD_RATE
from piston.runtime.audio.voice_activity import Clip, VoiceActivity
from piston.runtime.audio.windows import MelWindows
from piston.runtime.encoder_decoder import open_encoder_decoder
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint, RowSampler

if TYPE_CHECKING:
    from piston.core.bundle.manifest import Manifest
    from piston.runtime.backends.engine import EncoderDecoderEngine, Logits, Source
    from piston.runtime.text.tokenizer import Tokenizer

TASK = "automatic-speech-recognition"
SEED = 0  # of draws at temperatures above 0, so that the same audio gives the same text


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
                temperatures, thresholds, vad.

        Raises:
            MisuseError: the audio cannot be read, or the model does not have the language or task.
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
        source, rate = rereadable(audio), self.features.rate

        def blocks() -> Iterator[Samples]:
            for block in read_audio(source, rate):
                on_step()
                yield block

        decoder = WindowDecoder(self, chosen.language, on_step)
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
        decoder: "WindowDecoder",
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


def _closing(segments: Iterator[Segment], decoder: "WindowDecoder") -> Generator[Segment]:
    try:
        yield from segments
    finally:
        decoder.close()


class WindowDecoder:
    """Decodes windows in one slot of the engine; see piston.runtime.audio.transcribe.Decoder.

    `on_step` is called before each run of the encoder or the decoder; what it raises is raised.
    """

    def __init__(
        self, model: SpeechRecognizer, language: str | None, on_step: Callable[[], None] = lambda: None
    ) -> None:
        self.language = language
        self.tokens = model.tokens
        self._model, self._engine, self._on_step = model, model.engine, on_step
        self._slot: int | None = None

    def detect_language(self, window: NDArray[np.float32]) -> str:
        """The language whose token is likeliest behind the start token."""
        logits = self._begin(window, [self.tokens.start])[-1]
        codes = list(self.tokens.languages)
        self.language = codes[int(np.argmax(logits[[self.tokens.languages[code] for code in codes]]))]
        return self.language

    def decode(
        self,
        window: NDArray[np.float32],
        prompt_ids: Sequence[int],
        *,
        temperature: float,
        constraint: TimestampRules | None,
    ) -> Decoded:
        """The tokens behind a prompt, greedy or drawn."""
        tokens, rows = self.tokens, self._begin(window, prompt_ids)
        sampler = self._sampler(prompt_ids, temperature, scored := _Scored(constraint))
        no_speech = 0.0
        if tokens.no_speech is not None:
            start = rows[list(prompt_ids).index(tokens.start)]
            no_speech = float(np.exp(start[tokens.no_speech] - _log_sum(start)))
        logits = rows[-1]
        assert self._slot is not None
        while True:
            token_id = sampler.pick(logits).token_id
            if sampler.finish_reason is not None:
                break
            self._on_step()
            logits = self._engine.step({self._slot: token_id})[self._slot]
        found = tuple(token_id for token_id in sampler.output_ids if token_id != tokens.end)
        return Decoded(found, tuple(scored.logprobs), no_speech)

    def source(self, window: NDArray[np.float32]) -> "Source":
        """What the encoder reads of a window."""
        from piston.runtime.backends.engine import Source

        return Source({"audio": window}, hashlib.sha256(window.tobytes()).digest(), self._engine.max_source)

    def text(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, the space in front of it included."""
        return self._model.tokenizer.decode([token_id for token_id in token_ids if token_id < self.tokens.end])

    def token_ends(
        self, window: NDArray[np.float32], prompt_ids: Sequence[int], token_ids: Sequence[int], frames: int
    ) -> NDArray[np.float64]:
        """When the decoder, having read a token, looks on: it is run once more over the whole text."""
        from piston.runtime.backends.ort_cpu import OrtEngine

        engine, found = self._engine, list[NDArray[np.float32]]()
        assert isinstance(engine, OrtEngine)
        engine.around_run = lambda run: found.append(run.fetch([ALIGNMENT])[ALIGNMENT])
        try:
            self._begin(window, [*prompt_ids, *token_ids], num_logits=0)
        finally:
            engine.around_run = None
        attention = np.concatenate(found, axis=2)[0, :, len(prompt_ids) :]
        return token_times(attention.astype(np.float32), frames)

    def close(self) -> None:
        """Give the slot back."""
        if self._slot is not None:
            self._engine.cache.release(self._slot)
            self._slot = None

    def _begin(self, window: NDArray[np.float32], prompt_ids: Sequence[int], num_logits: int | None = None) -> "Logits":
        """Empty the slot, encode the window unless it is held, read the prompt; logits of its last tokens or all."""
        if self._slot is None:
            self._slot = self._engine.cache.admit()
        self._engine.cache.rewind(self._slot, 0)
        self._on_step()
        self._engine.encode(self._slot, self.source(window))
        self._on_step()
        return self._engine.prefill(
            self._slot, list(prompt_ids), num_logits=len(prompt_ids) if num_logits is None else num_logits
        ).copy()

    def _sampler(self, prompt_ids: Sequence[int], temperature: float, constraint: Constraint) -> RowSampler:
        generation = self._model.manifest.generation
        room = min(self.tokens.context, self._engine.cache.capacity) - len(prompt_ids)
        if room < 1:
            raise MisuseError(f"The prompt has {len(prompt_ids)} tokens, and the model holds {self.tokens.context}.")
        sampling = SamplingParams(
            temperature=temperature,
            max_tokens=room,
            seed=SEED,
            suppress_tokens=_ids(generation, "suppress_tokens"),
            begin_suppress_tokens=_ids(generation, "begin_suppress_tokens"),
        )
        return RowSampler(sampling, prompt_ids, eos_token_ids=[self.tokens.end], constraint=constraint)


@dataclass(slots=True)
class _Scored(Constraint):
    """A constraint that keeps the log probabilities of what is picked, among what it allows."""

    rules: TimestampRules | None
    logprobs: list[float] = field(default_factory=list)
    _logits: "Logits | None" = None

    def allowed(self, logits: "Logits") -> NDArray[np.bool_]:
        """See Constraint."""
        mask = np.ones(logits.size, np.bool_) if self.rules is None else self.rules.allowed(logits)
        self._logits = np.where(mask, logits, np.float32(-np.inf))
        return mask

    def accept(self, token_id: int) -> None:
        """See Constraint."""
        assert self._logits is not None
        self.logprobs.append(float(self._logits[token_id]) - _log_sum(self._logits))
        if self.rules is not None:
            self.rules.accept(token_id)


def _log_sum(logits: "Logits") -> float:
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def _ids(generation: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(int(token_id) for token_id in generation.get(name) or ())


open_model = partial(open_encoder_decoder, SpeechRecognizer)
