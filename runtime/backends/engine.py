"""The Engine protocol of every backend: prefill, step, and slots. It knows no text, sampling or devices."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from piston.core.errors import MisuseError
from piston.runtime.backends.kv_cache import KVCache

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Source:
    """What the encoder of an encoder-decoder reads for one row.

    Args:
        feeds: inputs of the encoder's graph by name, each [1, ...].
        key: equal for equal sources alone; a row with the key of another has its cross states.
        length: positions that its cross states have.
    """

    feeds: Mapping[str, NDArray[Any]]
    key: Hashable
    length: int

    @classmethod
    def of_text(cls, token_ids: Sequence[int]) -> Self:
        """A source of tokens, the tokenizer's frame included."""
        ids = np.array([token_ids], np.int64)
        return cls({"input_ids": ids, "lengths": np.array([len(token_ids)])}, ids.tobytes(), len(token_ids))


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


@runtime_checkable
class EncoderDecoderEngine(Engine, Protocol):
    """An engine whose rows also attend to a source."""

    max_source: int  # positions of a source

    def encode(self, slot: int, source: Source) -> None:
        """Run the encoder for a slot, which must be empty, unless the slot holds the states of this source already.

        Raises PromptTooLongError where the source does not fit.
        """


def needs_encoding(cache: KVCache, slot: int, source: Source) -> bool:
    """Whether a slot does not hold the states of a source already.

    Raises:
        MisuseError: it is not empty, and holds another.
        PromptTooLongError: the source does not fit.
    """
    assert cache.cross is not None
    if cache.cross.keys[slot] == source.key:
        return False
    if slot not in cache.used or cache.lengths[slot]:
        raise MisuseError(f"Slot {slot} is not empty; release it before another source is encoded.")
    cache.cross.check(source.length)
    return True


def encode(engine: Engine, slot: int, source: Source) -> None:
    """Run the encoder for a slot; raises MisuseError for an engine that has none."""
    if not isinstance(engine, EncoderDecoderEngine):
        raise MisuseError("A source was given, but this model has no encoder; give it as a prompt.")
    engine.encode(slot, source)
