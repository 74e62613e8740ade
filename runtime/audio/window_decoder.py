"""Decodes windows of audio on an engine: greedily, at a temperature, or by beam search."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import ALIGNMENT
from piston.core.errors import MisuseError
from piston.runtime.audio.alignment import token_times
from piston.runtime.audio.timestamps import TimestampRules
from piston.runtime.audio.transcribe import Decoded
from piston.runtime.backends.engine import Source
from piston.runtime.generate.beam_search import Search
from piston.runtime.generate.request import Request
from piston.runtime.sampling.beam_params import BeamParams
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.processors import Logits, allow
from piston.runtime.sampling.sampler import Constraint, RowSampler

if TYPE_CHECKING:
    from piston.runtime.tasks.automatic_speech_recognition import SpeechRecognizer

SEED = 0  # of draws at temperatures above 0, so that the same audio gives the same text


class WindowDecoder:
    """Decodes windows in one slot of the engine; see piston.runtime.audio.transcribe.Decoder.

    `on_step` is called before each run of the encoder or the decoder; what it raises is raised. With `beams` the tokens
    of temperature 0 are those of a beam search, as in Whisper's reference.
    """

    def __init__(
        self,
        model: "SpeechRecognizer",
        language: str | None,
        on_step: Callable[[], None] = lambda: None,
        beams: BeamParams | None = None,
    ) -> None:
        self.language = language
        self.tokens = model.tokens
        self._model, self._engine, self._on_step, self._beams = model, model.engine, on_step, beams
        self._slots: list[int] = []  # the first for greedy tokens and draws; a search has one for each beam

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
        """The tokens behind a prompt: greedy, drawn, or of a search."""
        tokens, rows = self.tokens, self._begin(window, prompt_ids)
        no_speech = 0.0
        if tokens.no_speech is not None:
            start = rows[list(prompt_ids).index(tokens.start)]
            no_speech = float(np.exp(start[tokens.no_speech] - _log_sum(start)))
        if self._beams is not None and temperature == 0:
            ids, logprobs = self._searched(window, prompt_ids, rows[-1], constraint, self._beams)
        else:
            ids, logprobs = self._picked(prompt_ids, rows[-1], temperature, constraint)
        return Decoded(tuple(token_id for token_id in ids if token_id != tokens.end), tuple(logprobs), no_speech)

    def _picked(
        self, prompt_ids: Sequence[int], logits: Logits, temperature: float, constraint: TimestampRules | None
    ) -> tuple[Sequence[int], list[float]]:
        """Tokens one by one, and their log probabilities."""
        sampler, slot = self._sampler(prompt_ids, temperature, scored := _Scored(constraint)), self._slots[0]
        while True:
            token_id = sampler.pick(logits).token_id
            if sampler.finish_reason is not None:
                return sampler.output_ids, scored.logprobs
            self._on_step()
            logits = self._engine.step({slot: token_id})[slot]

    def _searched(
        self,
        window: NDArray[np.float32],
        prompt_ids: Sequence[int],
        logits: Logits,
        constraint: TimestampRules | None,
        beams: BeamParams,
    ) -> tuple[Sequence[int], list[float]]:
        """The best hypothesis of a beam search, and the log probabilities of its tokens, for which it is read again."""
        self._slots += [self._engine.cache.admit() for _ in range(beams.num_beams - len(self._slots))]
        sampling = self._sampling(prompt_ids, temperature=0.0)
        sampler = _RuledSampler(sampling, prompt_ids, [self.tokens.end], constraint)
        search = Search(Request(list(prompt_ids), sampler, beams=beams), self._slots[: beams.num_beams])
        search.advance(self._engine, {self._slots[0]: logits})
        while not search.is_done:
            self._on_step()
            search.advance(self._engine, self._engine.step(search.next_tokens()))
        ids = search.found[0].token_ids
        logprobs = list[float]()
        for index, row in enumerate(self._begin(window, [*prompt_ids, *ids[:-1]], num_logits=len(ids))):
            scores = sampler.processed(row, ids[:index])
            logprobs.append(float(scores[ids[index]]) - _log_sum(scores))
        return ids, logprobs

    def source(self, window: NDArray[np.float32]) -> Source:
        """What the encoder reads of a window."""
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
        """Give the slots back."""
        while self._slots:
            self._engine.cache.release(self._slots.pop())

    def _begin(self, window: NDArray[np.float32], prompt_ids: Sequence[int], num_logits: int | None = None) -> Logits:
        """Empty the slot, encode the window unless it is held, read the prompt; logits of its last tokens or all."""
        if not self._slots:
            self._slots.append(self._engine.cache.admit())
        slot = self._slots[0]
        self._engine.cache.rewind(slot, 0)
        self._on_step()
        self._engine.encode(slot, self.source(window))
        self._on_step()
        return self._engine.prefill(
            slot, list(prompt_ids), num_logits=len(prompt_ids) if num_logits is None else num_logits
        ).copy()

    def _sampler(self, prompt_ids: Sequence[int], temperature: float, constraint: Constraint) -> RowSampler:
        sampling = self._sampling(prompt_ids, temperature)
        return RowSampler(sampling, prompt_ids, eos_token_ids=[self.tokens.end], constraint=constraint)

    def _sampling(self, prompt_ids: Sequence[int], temperature: float) -> SamplingParams:
        generation = self._model.manifest.generation
        room = min(self.tokens.context, self._engine.cache.capacity) - len(prompt_ids)
        if room < 1:
            raise MisuseError(f"The prompt has {len(prompt_ids)} tokens, and the model holds {self.tokens.context}.")
        return SamplingParams(
            temperature=temperature,
            max_tokens=room,
            seed=SEED,
            suppress_tokens=_ids(generation, "suppress_tokens"),
            begin_suppress_tokens=_ids(generation, "begin_suppress_tokens"),
        )


class _RuledSampler(RowSampler):
    """The options and timestamp rules of a search, whose hypotheses have a history each."""

    def __init__(
        self, sampling: SamplingParams, prompt_ids: Sequence[int], ends: Sequence[int], rules: TimestampRules | None
    ) -> None:
        super().__init__(sampling, prompt_ids, eos_token_ids=ends)
        self._rules = rules

    def processed(self, scores: Logits, output_ids: Sequence[int]) -> Logits:
        """See RowSampler."""
        scores = super().processed(scores, output_ids)
        return scores if self._rules is None else allow(scores, self._rules.allowed_after(output_ids, scores))


@dataclass(slots=True)
class _Scored(Constraint):
    """A constraint that keeps the log probabilities of what is picked, among what it allows."""

    rules: TimestampRules | None
    logprobs: list[float] = field(default_factory=list)
    _logits: "Logits | None" = None

    def allowed(self, logits: Logits) -> NDArray[np.bool_]:
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


def _log_sum(logits: Logits) -> float:
    highest = logits.max()
    return float(highest) + float(np.log(np.exp(logits - highest).sum(dtype=np.float64)))


def _ids(generation: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(int(token_id) for token_id in generation.get(name) or ())
