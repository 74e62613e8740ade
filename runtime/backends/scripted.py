"""An engine without a model: its logits are a function of the tokens so far. The public test double."""

from collections.abc import Callable, Mapping, Sequence
from typing import Self

import numpy as np

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import MisuseError
from piston.runtime.backends.engine import Logits
from piston.runtime.backends.kv_cache import KVCache

Script = Callable[[tuple[int, ...]], Sequence[float] | Logits]


class _Cache(KVCache):
    """Slots whose states are the tokens themselves."""

    def __init__(self, histories: list[list[int]], num_slots: int, capacity: int) -> None:
        spec = CacheSpec.of(num_layers=1, num_kv_heads=1, head_dim=1, dtype="float32")
        super().__init__(spec, num_slots, capacity)
        self._histories = histories

    def copy(self, source: int, goal: int, length: int, *, start: int = 0) -> None:
        """See KVCache."""
        super().copy(source, goal, length, start=start)
        self._histories[goal][:] = self._histories[source][:length]


class ScriptedEngine:
    """Answers each position with `script(history)`, and records its calls in `calls`.

    Rows are independent: their histories follow the slots' lengths, so a slot that is rewound, released or
    left alone behaves as with a real cache.
    """

    def __init__(self, script: Script, *, vocab_size: int, num_slots: int = 1, capacity: int = 64) -> None:
        self.vocab_size = vocab_size
        self._histories: list[list[int]] = [[] for _ in range(num_slots)]
        self.cache = _Cache(self._histories, num_slots, capacity)
        self.calls: list[tuple[str, object]] = []
        self.is_closed = False
        self._script = script

    @classmethod
    def saying(cls, token_ids: Sequence[int], *, vocab_size: int, prompt_len: int, num_slots: int = 1) -> Self:
        """Make an engine whose greedy answer to any prompt of `prompt_len` tokens is `token_ids`."""

        def script(history: tuple[int, ...]) -> Logits:
            logits = np.zeros(vocab_size, np.float32)
            said = max(len(history) - prompt_len, 0)
            logits[token_ids[min(said, len(token_ids) - 1)]] = 1.0
            return logits

        return cls(script, vocab_size=vocab_size, num_slots=num_slots, capacity=prompt_len + len(token_ids) + 64)

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """See Engine."""
        self.calls.append(("prefill", (slot, list(token_ids))))
        if not 0 <= num_logits <= len(token_ids):
            raise MisuseError(
                f"Logits of {num_logits} positions were requested from a prefill of {len(token_ids)} tokens."
            )
        self.cache.reserve(slot, len(token_ids))
        rows = [self._append(slot, token_id) for token_id in token_ids]
        return np.array(rows[len(rows) - num_logits :], np.float32).reshape(num_logits, self.vocab_size)

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """See Engine."""
        self.calls.append(("step", dict(tokens)))
        return {slot: self._append(slot, token_id) for slot, token_id in tokens.items()}

    def close(self) -> None:
        """See Engine."""
        self.is_closed = True

    def _append(self, slot: int, token_id: int) -> Logits:
        if not 0 <= token_id < self.vocab_size:
            raise MisuseError(f"Token id {token_id} is outside the vocabulary of {self.vocab_size}.")
        self.cache.reserve(slot, 1)
        history = self._histories[slot]
        del history[int(self.cache.lengths[slot]) :]
        history.append(token_id)
        self.cache.advance(slot, 1)
        return np.asarray(self._script(tuple(history)), np.float32)
