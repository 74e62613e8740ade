"""One row to generate, and its results: tokens, and an end."""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from piston.core.errors import EmptyPromptError, MisuseError, PromptTooLongError
from piston.runtime.backends.engine import EncoderDecoderEngine, Engine, Logits, Source
from piston.runtime.generate.speculation import Speculator
from piston.runtime.sampling.processors import logprobs
from piston.runtime.sampling.sampler import FinishReason, Pick, RowSampler

if TYPE_CHECKING:
    from piston.runtime.generate.beam_search import Hypothesis
    from piston.runtime.sampling.beam_params import BeamParams

EndReason = Literal["cancelled", "deadline", "error"]


@dataclass(slots=True)
class RequestTimes:
    """Seconds that one row waited for a slot, was prefilled, and had its tokens picked."""

    queue: float = 0.0
    prefill: float = 0.0
    sampling: float = 0.0


@dataclass(slots=True, eq=False)
class Request:
    """One row to generate.

    Args:
        prompt_ids: token ids of the prompt.
        sampler: picks the tokens and knows when the row ends.
        slot: already holds the first positions of the prompt; only the rest is prefilled.
        keep_slot: the slot stays admitted afterwards, for a later request; it holds all tokens but the last.
        speculator: its drafts are verified, several tokens a step.
        deadline: a time.monotonic() value at which the row ends, finished or not.
        cache_salt: prompts share cached prefixes only with prompts of the same salt.
        source: what the encoder of an encoder-decoder reads for this row; its prompt begins the answer.
        num_prompt_logprobs: collect `prompt_logprobs`, with so many of the likeliest tokens at each position; such a
            prompt is computed whole, since no logits of a cached prefix are kept.
        beams: search for the likeliest answers instead of picking tokens one by one; each beam takes a slot.
    """

    prompt_ids: list[int]
    sampler: RowSampler
    slot: int | None = None
    keep_slot: bool = False
    speculator: Speculator | None = None
    deadline: float | None = None
    cache_salt: str = ""
    source: Source | None = None
    num_prompt_logprobs: int | None = None
    beams: "BeamParams | None" = None
    # (logprob, likeliest as (token id, logprob)) of each prompt token but the first, which nothing came before
    prompt_logprobs: list[tuple[float, tuple[tuple[int, float], ...]]] = field(default_factory=list)
    num_prefilled: int = 0
    num_cached: int = 0  # tokens of the prompt that a slot held already
    times: RequestTimes = field(default_factory=RequestTimes)
    output_ids: list[int] = field(default_factory=list)
    is_cancelled: bool = False
    added_at: float = field(default_factory=time.perf_counter)

    def cancel(self) -> None:
        """End this row; others continue. May be called from any thread."""
        self.is_cancelled = True

    def observe_prompt(self, rows: Logits, start: int) -> None:
        """Collect what was asked for of the prompt; `rows` are the logits, [num, vocab], of positions from `start`."""
        if self.num_prompt_logprobs is not None:
            for logits, token_id in zip(rows, self.prompt_ids[start + 1 :], strict=False):
                self.prompt_logprobs.append(logprobs(logits, token_id, self.num_prompt_logprobs))

    @property
    def num_given(self) -> int:
        """Tokens of the prompt, and of the source of an encoder-decoder."""
        return len(self.prompt_ids) + (0 if self.source is None else self.source.length)

    @property
    def num_slots(self) -> int:
        """Slots that it takes."""
        return 1 if self.beams is None else self.beams.num_beams

    @property
    def num_answers(self) -> int:
        """Answers that it gets."""
        return 1 if self.beams is None else self.beams.num_return_sequences

    @property
    def source_key(self) -> Hashable:
        """Equal for rows whose prompts and sources may share states."""
        return None if self.source is None else self.source.key

    @property
    def num_held(self) -> int:
        """The tokens whose states the slot holds: all so far except the last one."""
        return len(self.prompt_ids) + max(len(self.output_ids) - 1, 0)


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token; `finish_reason` is set on the last one of its row."""

    request: Request
    pick: Pick
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Found:
    """What a beam search found, with which its request has ended: the best answers, best first."""

    request: Request
    hypotheses: "list[Hypothesis]"


@dataclass(frozen=True, slots=True)
class Ended:
    """A row that ended without a last token; `error` holds the reason if it is "error"."""

    request: Request
    reason: EndReason
    error: Exception | None = None


def check_fits(engine: Engine, request: Request) -> None:
    """Refuse, before any work, a prompt that is empty or, with max_tokens, exceeds the engine's capacity.

    Also a source that exceeds what the engine holds of it, or one where the engine has no encoder, and an option that
    names a token which the model does not have; and beams, see `check_beams`.
    """
    request.sampler.sampling.check_token_ids(engine.vocab_size)
    num_prompt, num_new = len(request.prompt_ids), request.sampler.sampling.max_tokens
    if num_prompt == 0:
        raise EmptyPromptError("The prompt has no tokens; give at least one character.")
    capacity = engine.cache.capacity
    if num_prompt + num_new > capacity:
        raise PromptTooLongError(
            f"The prompt has {num_prompt:,} tokens and max_tokens is {num_new:,}, together {num_prompt + num_new:,}, "
            f"but the engine holds {capacity:,}; shorten the prompt, lower max_tokens or load with a larger max_length."
        )
    check_beams(engine, request, engine.cache.num_slots)
    if (source := request.source) is None:
        return
    if not isinstance(engine, EncoderDecoderEngine):
        raise MisuseError("A source was given, but this model has no encoder; give it as a prompt.")
    if source.length > engine.max_source:
        raise PromptTooLongError(
            f"The source has {source.length:,} tokens, but the engine holds {engine.max_source:,}; shorten it, let its "
            "end be cut off (truncate), or load with a larger max_length."
        )


def check_beams(engine: Engine, request: Request, num_free: int) -> None:
    """Refuse more beams than `num_free` slots, a cache that cannot be copied, and options that a search does not have.

    Raises:
        MisuseError: see above.
    """
    size, sampling = request.num_slots, request.sampler.sampling
    if request.beams is None:
        return
    check_slots(engine, size, num_free)
    given = {
        "temperature": sampling.temperature,
        "stop": sampling.stop,
        "logprobs": sampling.logprobs,
        "prompt_lookup_num_tokens": sampling.prompt_lookup_num_tokens,
        "echo": sampling.echo,
        "a grammar": request.sampler.is_constrained,
    }
    if named := next((name for name, value in given.items() if value), None):
        raise MisuseError(f"Beam search does not support {named}; leave it out, or use num_beams 1.")


def check_slots(engine: Engine, num_beams: int, num_free: int) -> None:
    """Refuse more beams than `num_free` slots, and a cache that cannot be copied; raises MisuseError."""
    if num_beams > num_free:
        raise MisuseError(
            f"num_beams is {num_beams}, but the engine has {num_free} free slots; load with a larger max_batch, or use "
            "fewer beams."
        )
    if num_beams > 1 and not engine.cache.can_copy:
        raise MisuseError("Beam search copies rows of the cache, which this engine cannot; use an ort-cpu engine.")
