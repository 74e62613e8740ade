"""RowSampler: the state of one generated row: its history, its random stream and its finish reason.

It works on token ids: stop strings belong to the code that decodes text.
"""

import copy
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.runtime.sampling import processors as row
from piston.runtime.sampling.params import SamplingParams
from piston.runtime.sampling.processors import Logits, TokenIds

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Pick:
    """A chosen token; its logprob and the likeliest (token id, logprob) pairs, best first, if requested.

    Logprobs belong to the model's own distribution, before any option changes it, as in OpenAI's API and vLLM.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Constraint(Protocol):
    """What the tokens of one row must follow, such as a grammar; it learns every token that is picked."""

    def allowed(self, logits: Logits) -> NDArray[np.bool_]:
        """Which tokens may come next, bool (vocab,); `logits` are those that other options left."""

    def accept(self, token_id: int) -> None:
        """Take over the token that was picked."""

    def forced(self) -> Sequence[int]:
        """Tokens that very likely come next, since their text must; drafts to verify. Where nothing is forced: none."""
        return ()


class RowSampler:
    """Picks the tokens of one row, one `pick` per step, until `finish_reason` is not None.

    Args:
        sampling: the options.
        prompt_ids: token ids of the prompt; repetition_penalty, no_repeat_ngram_size and bad_words look at them.
        eos_token_ids: the model's end tokens.
        bad_words_ids: token ids of `sampling.bad_words`, one sequence for each spelling to forbid. A word that is an
            end token is forbidden like any other.
        index: number of this row among those that share a seed; each has its own random stream.
        constraint: what the tokens must follow; of this row alone.

    Raises:
        MisuseError: the sampling has bad_words without ids, or one of them is empty.
    """

    def __init__(
        self,
        sampling: SamplingParams,
        prompt_ids: Sequence[int] | NDArray[np.integer],
        *,
        eos_token_ids: Iterable[int] = (),
        bad_words_ids: Iterable[Sequence[int]] = (),
        index: int = 0,
        constraint: Constraint | None = None,
    ) -> None:
        self.sampling = sampling
        self._constraint = constraint
        # 53 bits, so that a seed drawn here survives a JSON reader that keeps numbers as doubles.
        self.seed = secrets.randbits(53) if sampling.seed is None else sampling.seed
        self.finish_reason: FinishReason | None = None
        self.stopped_by: int | None = None  # the token that ended the row, when finish_reason is "stop"
        self._rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(self.seed, spawn_key=(index,))))
        self._prompt_ids: TokenIds = np.array(prompt_ids, np.int64)
        self._output_ids: list[int] = []
        eos_token_ids = frozenset(eos_token_ids)
        self._end_ids = frozenset(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else eos_token_ids)
        self._bad_words_ids = tuple(tuple(sequence) for sequence in bad_words_ids)
        if not all(self._bad_words_ids) or (sampling.bad_words and not self._bad_words_ids):
            raise MisuseError(f"bad_words is {sampling.bad_words!r}; each word must come with its token ids.")
        ends = {(token_id,) for token_id in eos_token_ids}  # in transformers they still end the text
        self._bad_words_ids += tuple(sequence for sequence in sampling.bad_words_ids if sequence not in ends)

    @property
    def output_ids(self) -> tuple[int, ...]:
        """The tokens picked so far, the one that stopped the row included."""
        return tuple(self._output_ids)

    def pick(self, logits: Logits) -> Pick:
        """Choose and record the next token from the model's float32 logits of shape (vocab,), left unmodified.

        Raises:
            EngineError: the logits hold NaN or infinity, or exclude every token.
            MisuseError: the row is finished, or its options leave no token to pick.
        """
        self._check_unfinished()
        token_id = row.pick(self._adjust(logits), self.sampling, self._rng)
        self._record(token_id)
        if not self.sampling.logprobs:
            return Pick(token_id)
        options = self.sampling
        return Pick(token_id, *row.logprobs(logits, token_id, options.top_logprobs, options.logprob_token_ids))

    @property
    def end_ids(self) -> frozenset[int]:
        """The tokens that end the row."""
        return self._end_ids

    @property
    def is_constrained(self) -> bool:
        """Whether its tokens must follow a grammar."""
        return self._constraint is not None

    def processed(self, scores: Logits, output_ids: Sequence[int]) -> Logits:
        """Scores of the next token, float32 [vocab], after an output other than that picked so far: for a search.

        Options that depend on the history are applied as `pick` does; temperature and filters are not.
        """
        picked, self._output_ids = self._output_ids, list(output_ids)
        try:
            return self._forbid(self._shift(scores))
        finally:
            self._output_ids = picked

    @property
    def needs_logits(self) -> bool:
        """Whether the next token depends on the row's history, or its logits are reported: no device can pick it."""
        options = self.sampling
        return bool(
            options.logprobs
            or options.logit_bias
            or options.repetition_penalty != 1
            or options.frequency_penalty
            or options.presence_penalty
            or options.no_repeat_ngram_size
            or self._bad_words_ids
            or self._constraint is not None
            or self._suppressed()
            or self._forced() is not None
            or len(self._output_ids) < options.min_tokens
        )

    def forced_ids(self) -> list[int]:
        """Tokens that the constraint leaves little choice about, to be verified as a draft."""
        return [] if self._constraint is None else list(self._constraint.forced())

    def uniforms(self, count: int) -> NDArray[np.float32]:
        """The random numbers of the next `count` picks, float32 in [0, 1); `pick` and `record` still draw them."""
        if self.sampling.is_greedy:
            return np.zeros(count, np.float32)
        numbers = copy.deepcopy(self._rng).random(count).astype(np.float32)
        return np.minimum(numbers, np.nextafter(np.float32(1), np.float32(0)))  # 1 - 2**-53 rounds to 1

    def record(self, token_id: int) -> Pick:
        """Record a token that the device picked with the next of `uniforms`; raises MisuseError as `pick` does."""
        self._check_unfinished()
        if not self.sampling.is_greedy:
            self._rng.random()
        self._record(token_id)
        return Pick(token_id)

    def _check_unfinished(self) -> None:
        if self.finish_reason:
            raise MisuseError(f"The row is finished ({self.finish_reason}): no further token can be picked.")

    def _adjust(self, logits: Logits) -> Logits:
        """Apply the options that depend on the row's history; returns the argument itself if there are none."""
        adjusted = self._forbid(self._shift(logits))
        if adjusted is not logits:
            row.likeliest(logits)  # separates a broken engine from contradicting options
            if not np.isfinite(highest := adjusted.max()):
                raise MisuseError(
                    f"After {len(self._output_ids)} tokens the options leave none to pick (the highest logit is "
                    f"{highest}); loosen logit_bias, the penalties, no_repeat_ngram_size, bad words, "
                    "suppressed tokens, min_tokens or the grammar."
                )
        return adjusted

    def _shift(self, logits: Logits) -> Logits:
        options = self.sampling
        if options.logit_bias:
            logits = row.logit_bias(logits, options.logit_bias)
        if options.repetition_penalty != 1:
            logits = row.repetition_penalty(logits, self._history(), options.repetition_penalty)
        if options.frequency_penalty:
            logits = row.frequency_penalty(logits, self._output(), options.frequency_penalty)
        if options.presence_penalty:
            logits = row.presence_penalty(logits, self._output(), options.presence_penalty)
        return logits

    def _forbid(self, logits: Logits) -> Logits:
        options = self.sampling
        if options.no_repeat_ngram_size:
            logits = row.no_repeat_ngram(logits, self._history(), options.no_repeat_ngram_size)
        if self._bad_words_ids:
            logits = row.bad_words(logits, self._history(), self._bad_words_ids)
        if suppressed := self._suppressed():
            logits = row.suppress(logits, suppressed)
        if len(self._output_ids) < options.min_tokens:
            logits = row.min_tokens(logits, len(self._output_ids), options.min_tokens, self._end_ids)
        if (forced := self._forced()) is not None:
            logits = row.force(logits, forced)
        if self._constraint is not None:
            logits = row.allow(logits, self._constraint.allowed(logits))
        return logits

    def _forced(self) -> int | None:
        """The only token that may come next: the first, or the last that max_tokens leaves."""
        options, done = self.sampling, len(self._output_ids)
        if options.forced_eos_token_id is not None and done == options.max_tokens - 1:
            return options.forced_eos_token_id
        return options.forced_bos_token_id if done == 0 else None

    def _suppressed(self) -> tuple[int, ...]:
        options = self.sampling
        return options.suppress_tokens if self._output_ids else options.suppress_tokens + options.begin_suppress_tokens

    def _record(self, token_id: int) -> None:
        self._output_ids.append(token_id)
        if self._constraint is not None:
            self._constraint.accept(token_id)
        if token_id in self._end_ids:
            self.finish_reason, self.stopped_by = "stop", token_id
        elif len(self._output_ids) >= self.sampling.max_tokens:
            self.finish_reason = "length"

    def _output(self) -> TokenIds:
        return np.array(self._output_ids, np.int64)

    def _history(self) -> TokenIds:
        return np.concatenate([self._prompt_ids, self._output()])
