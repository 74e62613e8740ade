"""Keeps the slots of ended rows, so that a prompt with the same beginning reuses them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from piston.runtime.backends.kv_cache import KVCache

FEW = 32  # tokens of a slot, as many as a template rewrites, for which no other idle slot is given up
COPIED_PER_COMPUTED = 16  # tokens copied in the time of one that is prefilled (SmolLM2, two cores: 10 and 163 us)


@dataclass(frozen=True, slots=True)
class _Idle:
    """The contents of an idle slot, its salt, and what else its states depend on."""

    token_ids: list[int]
    salt: str
    source: Hashable


class PrefixCache:
    """Idle slots by their contents. The least recently used one is reassigned first.

    A match is exact to the token; at least one token of a prompt is left to be prefilled, since its logits are the
    first of the answer. What two prompts share, such as a system prompt, is copied where that costs less than computing
    the rest of the slot again would: neither chat then loses its own.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._idle: dict[int, _Idle] = {}  # in the order of use, the oldest first

    @property
    def num_idle(self) -> int:
        """Number of idle slots, which may be reassigned."""
        return len(self._idle)

    def keep(self, slot: int, token_ids: Sequence[int], salt: str, source: Hashable = None) -> None:
        """Keep a slot that holds the states of `token_ids`, of an encoder-decoder over the source of that key."""
        if not token_ids:
            self._cache.release(slot)
            return
        self._idle[slot] = _Idle(list(token_ids), salt, source)

    def admit(self, prompt_ids: Sequence[int], salt: str, source: Hashable = None) -> int:
        """Take the slot with the longest known prefix of the prompt; raises MisuseError if no slot is free.

        Only slots of the same source share anything; one without a common token still saves its encoder's run.
        """
        lengths = {
            slot: _num_shared(idle.token_ids, prompt_ids)
            for slot, idle in self._idle.items()
            if (idle.salt, idle.source) == (salt, source)
        }
        best = max(lengths, key=lengths.__getitem__, default=None)
        shared = 0 if best is None else lengths[best]
        if best is None or (shared == 0 and source is None):
            return self._freed(next(iter(self._idle), None))
        oldest = next((slot for slot in self._idle if slot != best), None)
        num_lost = len(self._idle[best].token_ids) - shared
        is_worth_it = num_lost > FEW or (self._cache.num_free and num_lost * COPIED_PER_COMPUTED >= shared)
        if num_lost and is_worth_it and self._cache.can_copy and (self._cache.num_free or oldest is not None):
            self._idle[best] = self._idle.pop(best)  # it was used just now
            slot = self._freed(oldest)
            self._cache.copy(best, slot, shared)
            return slot
        del self._idle[best]
        self._cache.rewind(best, shared)
        return best

    def _freed(self, oldest: int | None) -> int:
        """A free slot; where there is none, the idle one that was used longest ago."""
        if not self._cache.num_free and oldest is not None:
            self._drop(oldest)
        return self._cache.admit()

    def clear(self) -> None:
        """Release every idle slot."""
        for slot in list(self._idle):
            self._drop(slot)

    def _drop(self, slot: int) -> None:
        del self._idle[slot]
        self._cache.release(slot)


def _num_shared(held: Sequence[int], prompt_ids: Sequence[int]) -> int:
    pairs = zip(held, prompt_ids[:-1], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
