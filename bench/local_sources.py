"""Encoder-decoders under measurement: texts and speech, with the seconds of the encoder apart."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from piston.bench.local import Clock, LocalRun, Timed
from piston.runtime.audio.reading import read_audio
from piston.runtime.audio.transcribe_options import TranscribeOptions, prompt_of
from piston.runtime.audio.window_decoder import WindowDecoder
from piston.runtime.audio.windows import MelWindows
from piston.runtime.backends.engine import Source
from piston.runtime.golden_sounds import language_of
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.sampler import Constraint, RowSampler
from piston.runtime.tasks.automatic_speech_recognition import TASK as SPEECH
from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer
from piston.runtime.tasks.text2text_generation import TASK as TEXT_TO_TEXT

if TYPE_CHECKING:
    from piston.runtime.generate.generation import Generation


class SourceRun(LocalRun):
    """See LocalRun; the prompts are what the encoder reads, and `parts` has its seconds (`encode`)."""

    def run(
        self, prompts: Sequence[Sequence[int]], gen_len: int, step: Callable[[], None], num_beams: int = 1
    ) -> list[list[int]]:
        """See LocalRun."""
        with _timing(self._model.engine, self._clock) as seconds:
            found = super().run(prompts, gen_len, step, num_beams)
        self.parts["encode"] = sum(seconds)
        return found

    def _prepared(self, prompts: Sequence[Sequence[int]], sampling: SamplingParams) -> "list[Generation]":
        from piston.runtime.generate.generation import prepare

        model = self._model
        ends = model.manifest.tokenizer.eos_token_ids
        generations = prepare([model.prefix] * len(prompts), sampling, model.tokenizer, ends)
        for generation, prompt in zip(generations, prompts, strict=True):
            generation.request.source = Source.of_text(prompt)
        return generations


class SpeechRun:
    """Transcribes one audio file at a time.

    With a `gen_len` every window gets so many tokens, whatever the model says; `step` is called at the end of each.
    Without one it is transcribed as `piston run` does, greedily, and `step` is called at each segment and at the end.
    `parts` holds the seconds of the encoder (`encode`) and of the audio (`audio`), and the number of `tokens`.
    """

    def __init__(self, model: SpeechRecognizer, clock: Clock = time.perf_counter) -> None:
        self.parts: dict[str, float] = {}
        self._model = model
        self._clock = clock

    def run(
        self, prompts: Sequence[Sequence[str]], gen_len: int, step: Callable[[], None], num_beams: int = 1
    ) -> list[list[int]]:
        """The tokens of the audio whose path is the one prompt."""
        assert num_beams == 1
        ((path,),) = prompts
        with _timing(self._model.engine, self._clock) as seconds:
            audio, token_ids = self._forced(path, gen_len, step) if gen_len else self._transcribed(path, step)
        self.parts = {"encode": sum(seconds), "audio": audio, "tokens": float(len(token_ids))}
        return [token_ids]

    def close(self) -> None:
        """Free the model."""
        self._model.close()

    def _forced(self, path: str, gen_len: int, step: Callable[[], None]) -> tuple[float, list[int]]:
        model, token_ids = self._model, list[int]()
        windows = MelWindows(partial(read_audio, path, model.features.rate), model.features)
        prompt_ids = prompt_of(model.tokens, TranscribeOptions(timestamps=False), language_of(model.tokens), ())
        with closing(_FixedLength(model, gen_len)) as decoder:
            for start in range(0, windows.spoken_frames, model.features.window_frames):
                window, _ = windows.at(start)
                decoder.decode(window, prompt_ids, temperature=0.0, constraint=None)
                token_ids += decoder.said
                step()
        return windows.seconds, token_ids

    def _transcribed(self, path: str, step: Callable[[], None]) -> tuple[float, list[int]]:
        token_ids = list[int]()
        with closing(self._model.stream(path, temperatures=(0.0,))) as stream:
            for segment in stream:
                token_ids += segment.token_ids
                step()
        step()
        return stream.duration, token_ids


class _FixedLength(WindowDecoder):
    """Decodes exactly so many tokens; `said` are those of the last window, end tokens included."""

    def __init__(self, model: SpeechRecognizer, num_tokens: int) -> None:
        super().__init__(model, None)
        self._num_tokens = num_tokens
        self._sampled: RowSampler | None = None

    @property
    def said(self) -> list[int]:
        assert self._sampled is not None
        return list(self._sampled.output_ids)

    def _sampler(self, prompt_ids: Sequence[int], temperature: float, constraint: Constraint) -> RowSampler:
        sampling = SamplingParams(temperature=temperature, max_tokens=self._num_tokens, ignore_eos=True)
        self._sampled = RowSampler(sampling, prompt_ids, eos_token_ids=(), constraint=constraint)
        return self._sampled


@contextmanager
def _timing(engine: Any, clock: Clock) -> Iterator[list[float]]:
    """The seconds of each run of the encoder, as long as the block lasts."""
    whole, seconds = engine.encode, list[float]()

    def encode(slot: int, source: Source) -> None:
        start = clock()
        whole(slot, source)
        seconds.append(clock() - start)

    engine.encode = encode
    try:
        yield seconds
    finally:
        del engine.encode  # of the instance: that of the class is there again


CLASSES: Mapping[str, Callable[[Any], Timed]] = {TEXT_TO_TEXT: SourceRun, SPEECH: SpeechRun}
