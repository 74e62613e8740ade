"""How many tokens of a prompt are prefilled between two decode steps, so that running rows do not wait long."""

from typing import Literal

Stall = float | Literal["auto"]
# A chunk's tokens are a multiple of this, however short the stall may be: fewer cost more for each token, and own
# kernels attend 12 at a time.
LEAST_CHUNK = 12
# "auto" lets a row wait about so many of its own steps for a chunk, so the gap between its tokens becomes three times
# the usual one. Shorter chunks cost more for each token, so prompts of at most SHORT_PROMPT tokens, which are soon
# read, have chunks of SHORT_CHUNK at least.
AUTO_STEPS = 2
SHORT_PROMPT, SHORT_CHUNK = 256, 60
IDLE_CHUNK = 512  # where no row runs: long enough to cost nothing, and requests that come meanwhile are seen
_KEPT = 0.7  # weight that older measurements keep at each new one


class ChunkSize:
    """Learns what a token of a prompt and a step of the running rows take.

    Args:
        max_stall: seconds that a running row may wait for another row's prompt in one step; or "auto".
    """

    def __init__(self, max_stall: Stall) -> None:
        self._max_stall = max_stall
        self._tokens = self._prefill_seconds = 0.0  # sums, the latest weighing most
        self._steps = self._step_seconds = 0.0

    def observe_prefill(self, num_tokens: int, seconds: float) -> None:
        """Take what a prefill of `num_tokens` took."""
        self._tokens = _KEPT * self._tokens + num_tokens
        self._prefill_seconds = _KEPT * self._prefill_seconds + seconds

    def observe_step(self, seconds: float) -> None:
        """Take what a step of all running rows took."""
        self._steps = _KEPT * self._steps + 1
        self._step_seconds = _KEPT * self._step_seconds + seconds

    def num_tokens(self, prompt_length: int) -> int:
        """Tokens of the next chunk of a prompt; the least number before anything was measured.

        A token of a longer chunk costs less, so this is too few until chunks of this length were measured; rounded to
        the nearest multiple it grows from any length.
        """
        least = SHORT_CHUNK if self._max_stall == "auto" and prompt_length <= SHORT_PROMPT else LEAST_CHUNK
        if not self._prefill_seconds:
            return least
        stall = AUTO_STEPS * self._step_seconds / max(self._steps, 1) if self._max_stall == "auto" else self._max_stall
        return max(least, LEAST_CHUNK * round(stall * self._tokens / self._prefill_seconds / LEAST_CHUNK))
