"""Keeps the slots of ended rows, so that a prompt with the same beginning reuses them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from piston.runtime.backends.kv_cache import KVCache


@dataclass(frozen=True, slots=True)
class _Idle:
    """The contents of an idle slot and its salt."""

    token_ids: list[int]
    salt: str


class PrefixCache:
    """Idle slots by their contents. The least recently used one is reassigned first.

    A match is exact to the token; at least one token of a prompt is left to be prefilled, since its logits are the
    first of the answer.
    """

    def __init__(self, cache: KVCache) -> None:
        self._cache = cache
        self._idle: dict[int, _Idle] = {}  # in the order of use, the oldest first

    @property
    def num_idle(self) -> int:
        """Number of idle slots, which may be reassigned."""
        return len(self._idle)

    def keep(self, slot: int, token_ids: Sequence[int], salt: str) -> None:
        """Keep a slot that holds the states of `token_ids`."""
        if not token_ids:
            self._cache.release(slot)
            return
        self._idle[slot] = _Idle(list(token_ids), salt)

    def admit(self, prompt_ids: Sequence[int], salt: str) -> int:
        """Take the slot with the longest known prefix of the prompt; raises MisuseError if no slot is free."""
        lengths = {
            slot: _num_shared(idle.token_ids, prompt_ids) for slot, idle in self._idle.items() if idle.salt == salt
        }
        best = max(lengths, key=lengths.__getitem__, default=None)
        if best is not None and lengths[best] > 0:
            del self._idle[best]
            self._cache.rewind(best, lengths[best])
            return best
        if not self._cache.num_free and self._idle:
            self._drop(next(iter(self._idle)))
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
