"""What comes back from generation: text, ids, why it ended, and what it took."""

from dataclasses import dataclass

from piston.runtime.row_sampler import FinishReason


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token with its log-probability; `bytes_` are its own, so that halves of a character can be joined."""

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
    """Seconds, measured around the engine and the sampler of this row and its neighbours."""

    time_to_first_token: float
    total: float
    num_tokens: int

    @property
    def tokens_per_second(self) -> float:
        """Decode speed: tokens after the first, over the time after the first."""
        elapsed = self.total - self.time_to_first_token
        return (self.num_tokens - 1) / elapsed if elapsed > 0 and self.num_tokens > 1 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One generated row. `stop_reason` is the stop string or token id that ended it, if one did."""

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None  # None: it was interrupted
    stop_reason: str | int | None
    num_prompt_tokens: int
    num_prefilled_tokens: int  # fewer than the prompt's where a cached prefix was reused
    seed: int
    timings: Timings
    logprobs: tuple[PositionLogprobs, ...] | None = None
