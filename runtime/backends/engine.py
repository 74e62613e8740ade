"""The Engine protocol of every backend: prefill, step, and slots. It knows no text, sampling or devices."""

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from piston.runtime.backends.kv_cache import KVCache

Logits = NDArray[np.float32]


@runtime_checkable
class Engine(Protocol):
    """A loaded model with a cache of slots."""

    vocab_size: int
    cache: KVCache

    def prefill(self, slot: int, token_ids: Sequence[int], num_logits: int = 1) -> Logits:
        """Append tokens to a slot; logits of the last `num_logits` of them, float32 [num_logits, vocab].

        The result may be overwritten by the next call: copy what must last.
        """

    def step(self, tokens: Mapping[int, int]) -> dict[int, Logits]:
        """Append one token to each given slot; logits by slot, float32 [vocab], valid until the next call."""

    def close(self) -> None:
        """Free the backend's resources; the engine cannot be used afterwards."""
