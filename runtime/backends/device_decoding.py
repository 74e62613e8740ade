"""Decoding without the host between tokens: the protocol of engines that choose tokens on their device."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from piston.runtime.sampling.params import SamplingParams


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRow:
    """A row that the device continues.

    Attributes:
        token_id: the last token chosen for it, which is not in the cache yet.
        sampling: how the next ones are chosen.
        uniforms: random numbers for its next tokens, float32 in [0, 1), one for each; unused when greedy.
    """

    token_id: int
    sampling: SamplingParams
    uniforms: NDArray[np.float32]


@runtime_checkable
class DeviceDecoding(Protocol):
    """An engine whose decode steps feed each other on the device."""

    def can_choose(self, sampling: SamplingParams) -> bool:
        """Whether the device can choose tokens with these options, not counting those that need the row's history."""

    def run(self, rows: Mapping[int, DeviceRow], num_steps: int) -> Iterator[dict[int, int]]:
        """Decode the given slots together for up to `num_steps` steps; yields the tokens chosen, by slot.

        Each step appends to a slot the token before the one that it yields, as `Engine.step` does. The device works
        ahead of what has been yielded; surplus steps are discarded when the iterator is closed. It ends early when the
        engine is used otherwise between two tokens, and at once when the rows cannot run together.
        """
