"""The key-value cache: one preallocated array for each state, its rows handed out as slots.

It knows lengths and capacity, not tokens and not backends.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import MisuseError, PromptTooLongError

STORED = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16, "int8": np.int8}


class KVCache:
    """Slots 0 .. num_slots-1, each holding up to `capacity` positions of every layer.

    Memory is [num_slots, kv_heads, capacity, head_dim] for each layer's keys and for its values, allocated here once
    and never moved. The operating system commits its pages when they are first written. An engine that keeps the
    entries on a device gives `bases`, where each array begins there, and `device`; only the slots and their lengths
    are then here.
    """

    def __init__(
        self,
        spec: CacheSpec,
        num_slots: int,
        capacity: int,
        *,
        device: str = "cpu",
        bases: Sequence[int] | None = None,
    ) -> None:
        self.spec = spec
        self.num_slots = num_slots
        self.capacity = capacity
        self.device = device
        states = spec.states if bases is None else ()
        self.arrays: list[NDArray[Any]] = [
            np.zeros(state.sizes(num_slots, capacity), STORED[state.dtype]) for state in states
        ]
        self._bases = [int(array.ctypes.data) for array in self.arrays] if bases is None else list(bases)
        self._row_bytes = spec.array_bytes(1, capacity)
        self.lengths = np.zeros(num_slots, np.int64)
        self._free = list(range(num_slots))

    @property
    def num_free(self) -> int:
        """Slots that `admit` can still give."""
        return len(self._free)

    def admit(self) -> int:
        """Take the lowest free slot; raises MisuseError when there is none."""
        if not self._free:
            raise MisuseError(f"All {self.num_slots} slots are taken; release one or load with a larger max_batch.")
        slot = min(self._free)
        self._free.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Give a slot back, empty."""
        self._check(slot)
        self.lengths[slot] = 0
        self._free.append(slot)

    def rewind(self, slot: int, length: int) -> None:
        """Forget the positions of a slot from `length` on."""
        self._check(slot)
        if not 0 <= length <= self.lengths[slot]:
            raise MisuseError(f"Slot {slot} holds {self.lengths[slot]} positions; it cannot be rewound to {length}.")
        self.lengths[slot] = length

    def reserve(self, slot: int, count: int) -> None:
        """Check that `count` more positions fit; raises PromptTooLongError with both numbers."""
        self._check(slot)
        if (needed := int(self.lengths[slot]) + count) > self.capacity:
            raise PromptTooLongError(
                f"Slot {slot} would need {needed} positions but the cache was made for {self.capacity}; "
                f"load with max_length={needed} or shorten the prompt."
            )

    def advance(self, slot: int, count: int) -> None:
        """Record that `count` positions were written."""
        self.lengths[slot] += count

    def spans(self, slots: Iterable[int]) -> list[tuple[int, int]]:
        """Cover `slots` by ranges [low, high) of rows that one step may run on.

        A range may include idle rows: the step then writes one position behind their last, which is never read and is
        overwritten later. A full idle row has no such place, so no range includes one.
        """
        spans: list[tuple[int, int]] = []
        for slot in sorted(slots):
            self._check(slot)
            if spans and bool((self.lengths[spans[-1][1] : slot] < self.capacity).all()):
                spans[-1] = (spans[-1][0], slot + 1)
            else:
                spans.append((slot, slot + 1))
        return spans

    def address(self, index: int, slot: int) -> int:
        """Address of a slot's first byte in the array of the state `index`."""
        return self._bases[index] + slot * self._row_bytes[index]

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots or slot in self._free:
            raise MisuseError(f"Slot {slot} is not in use; admit it first.")
