"""The result of generation: text, ids, finish reason and timings."""

from dataclasses import dataclass

from piston.runtime.sampling.sampler import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability; `bytes_` allow parts of a character to be joined."""

    token_id: int
    token: str
    bytes_: bytes
    logprob: float


@dataclass(frozen=True, slots=True)
class PositionLogprobs:
    """The chosen token of one position, and the likeliest ones, best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of one row. Rows that are decoded together share a step, and each counts the full step.

    Attributes:
        time_to_first_token: from the call to the first token; includes tokenizing, queue and prefill.
        total: from the call to the last token.
        num_tokens: generated.
        queue: waiting for a slot.
        prefill: the engine's time for the prompt.
        tokenizing: template and prompt to ids, and ids to text.
        sampling: logits to tokens.
    """

    time_to_first_token: float
    total: float
    num_tokens: int
    queue: float = 0.0
    prefill: float = 0.0
    tokenizing: float = 0.0
    sampling: float = 0.0

    @property
    def time_per_output_token(self) -> float:
        """Mean seconds between tokens after the first; 0 when there is none."""
        elapsed = self.total - self.time_to_first_token
        return elapsed / (self.num_tokens - 1) if elapsed > 0 and self.num_tokens > 1 else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, over the time after the first."""
        return 1 / self.time_per_output_token if self.time_per_output_token else 0.0

    def to_json(self) -> dict[str, float]:
        """All timings in seconds under the names of benchmarks, as `piston run --json` prints them."""
        return {
            "queue_s": self.queue,
            "tokenizing_s": self.tokenizing,
            "prefill_s": self.prefill,
            "time_to_first_token_s": self.time_to_first_token,
            "time_per_output_token_s": self.time_per_output_token,
            "decode_tokens_per_s": self.tokens_per_second,
            "sampling_s": self.sampling,
            "total_s": self.total,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafts:
    """Statistics of drafted tokens; `problem` says why the engine verified no draft."""

    num_drafted: int
    num_accepted: int
    num_verified: int  # engine calls that verified a guess
    problem: str | None = None

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self.num_accepted / self.num_drafted if self.num_drafted else 0.0

    def to_json(self) -> dict[str, float | str | None]:
        """As `piston run --json` prints it."""
        return {
            "drafted": self.num_drafted,
            "accepted": self.num_accepted,
            "verified_steps": self.num_verified,
            "acceptance": self.acceptance,
            "problem": self.problem,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated row. `stop_reason` is the stop string or token id that ended it, if one did.

    `text` is what the tokens add to the prompt's text, special tokens aside; with `echo` it begins with that text.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # None: it was interrupted
    stop_reason: str | int | None
    num_prompt_tokens: int
    num_prefilled_tokens: int  # fewer than the prompt has where a cached prefix was reused
    seed: int
    timings: Timings
    logprobs: tuple[PositionLogprobs, ...] | None = None
    prompt_logprobs: tuple[PositionLogprobs, ...] | None = None  # from the second token on, with echo and logprobs
    score: float | None = None  # of a beam search: its log-probability over its length ** length_penalty
    num_source_tokens: int = 0  # that the encoder read, of an encoder-decoder
    drafts: Drafts | None = None  # None unless prompt_lookup_num_tokens was given
