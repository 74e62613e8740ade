"""Speculation: how many drafted tokens to verify at once so that it pays, and whether verification is exact here.

A draft is verified by one engine call over its tokens and changes no token: each is picked, in order and from the same
logits, as if it had been decoded alone, and the first that differs from the draft ends it. This requires a backend that
computes a position with the same bits alone and among others. Engines must be made for it, and each loaded engine is
measured once; where it does not hold, nothing is drafted (docs/speculation.md).
"""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from piston.core.bundle.manifest import EngineSpec
from piston.runtime.backends.engine import Engine, Logits
from piston.runtime.generate.prompt_lookup import LONGEST_MATCH, Draft, PromptLookup

PROBE_STEPS = 8  # tokens decoded one by one to compare with
PROBE_SIZES = (4, 8, 16)  # tokens of the engine calls they are compared with: kernels change with the size
LONGEST_DRAFT = max(PROBE_SIZES) - 1
INEXACT = "this engine rounds a token among others differently from one alone; an ort-cpu:avx512 engine does not"
# Cost of each further token, as a share of a step of one token, until both have been measured.
ASSUMED_SLOPE = 0.1
FORGETTING = 0.95  # weight that older observations keep at each new one
FORCED = LONGEST_MATCH + 1  # stands for the length of a match where a grammar forces the tokens
FORCED_RIGHT = 9.0  # right ones that are assumed to have been seen, with one wrong one


class StepCost:
    """Seconds of an engine call by its number of tokens: a line fitted to recent observations."""

    def __init__(self) -> None:
        self._sums = np.zeros(5)  # of 1, x, x^2, y, x y

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Add one observation; older ones lose weight."""
        x, y = num_tokens, seconds
        self._sums = FORGETTING * self._sums + np.array([1, x, x * x, y, x * y])

    def seconds(self, num_tokens: int) -> float:
        """Predicted cost of a call, in units of a one-token step without observations."""
        if num_tokens == 0:
            return 0.0
        count, sum_x, sum_xx, sum_y, sum_xy = (float(value) for value in self._sums)
        if count == 0:
            return 1 + ASSUMED_SLOPE * (num_tokens - 1)
        spread = sum_xx - sum_x * sum_x / count
        slope = (sum_xy - sum_x * sum_y / count) / spread if spread > 1e-3 * count else ASSUMED_SLOPE * sum_y / count
        slope = max(slope, 0.0)
        return max((sum_y - slope * sum_x) / count, 1e-9) + slope * num_tokens


class Verification:
    """How many tokens one engine verifies exactly, and at what cost. Shared by all its rows.

    `limit` is the number that the engine was made for (`exact_tokens`): integers hide a difference in most positions,
    so measuring alone would miss it. 0: nothing is ever drafted.
    """

    def __init__(self, limit: int = max(PROBE_SIZES)) -> None:
        self.cost = StepCost()
        self.limit = limit
        self.most_tokens: int | None = None if limit else 0  # of a call whose every token is exact; None until probed

    @property
    def longest_draft(self) -> int:
        """Tokens that may be drafted at once: one less than a call may have. 0 until probed."""
        return max((self.most_tokens or 0) - 1, 0)

    def probe(self, engine: Engine, slot: int, token_ids: Sequence[int]) -> None:
        """Decode the last of `token_ids` one by one and again together, after the positions in the slot.

        The slot is left as it was. Without room or tokens nothing is measured.
        """
        tokens, start = list(token_ids[-max(PROBE_SIZES) :]), int(engine.cache.lengths[slot])
        if len(tokens) < max(PROBE_SIZES) or start + max(PROBE_SIZES) > engine.cache.capacity:
            return
        most = 0
        try:
            alone = np.array([self._timed_step(engine, slot, token_id) for token_id in tokens[:PROBE_STEPS]])
            for size in [size for size in PROBE_SIZES if size <= self.limit]:
                engine.cache.rewind(slot, start)
                began = time.perf_counter()
                together = engine.prefill(slot, tokens[:size], num_logits=size)
                self.cost.observe(size, time.perf_counter() - began)
                if not np.array_equal(alone[:size], together[:PROBE_STEPS]):
                    break
                most = size
        finally:
            engine.cache.rewind(slot, start)
        self.most_tokens = most

    def _timed_step(self, engine: Engine, slot: int, token_id: int) -> Logits:
        began = time.perf_counter()
        logits = engine.step({slot: token_id})[slot].copy()  # the next call overwrites them
        self.cost.observe(1, time.perf_counter() - began)
        return logits


def exact_tokens(spec: EngineSpec) -> int:
    """How many tokens of one call the engine computes with the same bits as alone; 0 if it does not guarantee that.

    Piston's own kernels guarantee it, if every attention runs on them. GroupQueryAttention does not (ORT 1.32).
    """
    own = spec.actual.get("own_kernels")
    layers = own.get("attention") if isinstance(own, Mapping) else None
    return max(PROBE_SIZES) if layers and layers == spec.actual.get("attention_layers") else 0


class Speculator:
    """Drafts of one row: looked up or forced, cut to the length that pays, and compared with the real tokens.

    A draft that is not worth verifying is still compared with the real tokens. So a row that starts to repeat itself is
    noticed at no cost, and one that stops costs nothing.

    Args:
        verification: of the engine the row runs on.
        prompt_ids: the tokens of the prompt.
        limit: most tokens to look up at once; 0: only forced tokens are drafted.
    """

    def __init__(self, verification: Verification, prompt_ids: Sequence[int], limit: int) -> None:
        self.verification = verification
        self.num_drafted = self.num_accepted = self.num_verified = 0
        self._limit = limit
        self._lookup = PromptLookup(prompt_ids) if limit else None
        self._pending: Draft | None = None
        self._num_right = 0  # tokens of the pending draft that were right so far
        self._is_verified = False
        # Right and wrong drafts by length of the match, which grows with each right token: the value of a longer match
        # is learned row by row. Forced tokens are wrong where the model spells the same text in other tokens.
        self._right = np.array([0.0, *(0.5 * n for n in range(1, LONGEST_MATCH + 1)), FORCED_RIGHT])
        self._wrong = np.ones(FORCED + 1)

    @property
    def looks_up(self) -> bool:
        """Whether drafts are looked up in the text so far."""
        return self._lookup is not None

    def draft(self, num_left: int, num_others: int, forced: Sequence[int] = ()) -> list[int]:
        """Tokens worth verifying now, often none.

        Args:
            num_left: tokens the row may still get; a draft is one shorter.
            num_others: rows that step in the meantime.
            forced: tokens that a grammar forces; they are drafted rather than what is looked up.
        """
        longest = min(num_left - 1, self.verification.longest_draft)
        found = self._found(longest, forced) if longest > 0 else None
        length = 0 if found is None else self._paying_len(found, num_others)
        if found is not None and (length or self._pending is None):
            kept = found.token_ids[: length or None]
            self._pending, self._num_right, self._is_verified = Draft(kept, found.match_len), 0, length > 0
        if found is None or not length:
            return []
        self.num_drafted += length
        self.num_verified += 1
        return list(found.token_ids[:length])

    def observe(self, token_id: int) -> None:
        """Record a token that was picked for the row."""
        if self._lookup is not None:
            self._lookup.append(token_id)
        if (draft := self._pending) is None:
            return
        is_right = token_id == draft.token_ids[self._num_right]
        match_len = _match_len(draft, self._num_right)
        self._right[match_len] = FORGETTING * self._right[match_len] + is_right
        self._wrong[match_len] = FORGETTING * self._wrong[match_len] + (not is_right)
        self._num_right += is_right
        self.num_accepted += is_right and self._is_verified
        if not is_right or self._num_right == len(draft.token_ids):
            self._pending = None

    def _found(self, longest: int, forced: Sequence[int]) -> Draft | None:
        if forced:
            return Draft(forced[:longest], FORCED)
        return None if self._lookup is None else self._lookup.propose(min(self._limit, longest))

    def _paying_len(self, draft: Draft, num_others: int) -> int:
        """The draft length with the most expected tokens per second, 0 if none beats a plain step."""
        cost = self.verification.cost
        chances = self._right / (self._right + self._wrong)
        best, best_rate = 0, (num_others + 1) / cost.seconds(num_others + 1)
        expected, all_right = float(num_others + 1), 1.0
        for length in range(1, len(draft.token_ids) + 1):
            all_right *= float(chances[_match_len(draft, length - 1)])
            expected += all_right
            rate = expected / (cost.seconds(num_others) + cost.seconds(length + 1))
            if rate > best_rate:
                best, best_rate = length, rate
        return best


def _match_len(draft: Draft, num_right: int) -> int:
    """How many tokens before a drafted one agreed with the earlier occurrence."""
    return FORCED if draft.match_len == FORCED else min(draft.match_len + num_right, LONGEST_MATCH)
