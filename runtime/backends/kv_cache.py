"""The key-value cache: one preallocated array for each state, whose rows are assigned to slots.

It knows lengths and capacity, not tokens and not backends.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import HostMemoryError, MisuseError, PromptTooLongError
from piston.runtime.backends.cross_states import Sources

STORED = {"float32": np.float32, "float16": np.uint16, "bfloat16": np.uint16, "int8": np.int8}


@dataclass(frozen=True, slots=True)
class Move:
    """A copy of row `source` to row `goal`; an exchange also copies row `goal` to `source`."""

    source: int
    goal: int
    is_exchange: bool


class KVCache:
    """Slots 0 .. num_slots-1, each holding up to `capacity` positions of every layer.

    Memory is [num_slots, kv_heads, capacity, head_dim] for each layer's keys and for its values, allocated here once
    and never moved. The operating system commits its pages when they are first written. An engine whose cache is on a
    device passes `bases`, the address of each array there, and `device`; this object then holds only the slots and
    their lengths. Raises HostMemoryError where the memory is not given.

    A slot is in the row of its own number until `gather` moves it.

    Attributes:
        cross: what the rows attend to beside their own tokens, of an encoder-decoder; its engine sets it.
    """

    cross: Sources | None = None

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
        try:
            self.arrays: list[NDArray[Any]] = [
                np.zeros(state.sizes(num_slots, capacity), STORED[state.dtype]) for state in states
            ]
        except MemoryError:
            size = spec.bytes_per_token * num_slots * capacity
            raise HostMemoryError(
                f"A cache of {num_slots:,} rows of {capacity:,} positions takes {size / 1e9:,.1f} GB, which this "
                "machine does not give; lower max_batch or max_length."
            ) from None
        self._bases = [int(array.ctypes.data) for array in self.arrays] if bases is None else list(bases)
        self._row_bytes = spec.array_bytes(1, capacity)
        self.lengths = np.zeros(num_slots, np.int64)
        self._free = list(range(num_slots))
        self._rows = list(range(num_slots))  # of each slot
        self._placed = list(range(num_slots))  # the slot of each row

    @property
    def num_free(self) -> int:
        """Number of free slots."""
        return len(self._free)

    def admit(self) -> int:
        """Take the lowest free slot, in the lowest free row; raises MisuseError if none is free."""
        if not self._free:
            raise MisuseError(f"All {self.num_slots} slots are taken; release one or load with a larger max_batch.")
        slot, lowest = min(self._free), min(self._free, key=self._rows.__getitem__)
        self._exchange(slot, lowest)  # both are empty
        self._free.remove(slot)
        return slot

    def release(self, slot: int) -> None:
        """Release a slot and empty it."""
        self._check(slot)
        self.lengths[slot] = 0
        self._free.append(slot)
        if self.cross is not None:
            self.cross.release(slot)

    def rewind(self, slot: int, length: int) -> None:
        """Discard the positions of a slot from `length` on."""
        self._check(slot)
        if not 0 <= length <= self.lengths[slot]:
            raise MisuseError(f"Slot {slot} holds {self.lengths[slot]} positions; it cannot be rewound to {length}.")
        self.lengths[slot] = length

    @property
    def used(self) -> list[int]:
        """The slots that are in use, in ascending order."""
        free = set(self._free)
        return [slot for slot in range(self.num_slots) if slot not in free]

    @property
    def can_copy(self) -> bool:
        """Whether `copy` works: the entries are here, and each belongs to a position."""
        return bool(self.arrays) and all(state.axis is not None for state in self.spec.states)

    def copy(self, source: int, goal: int, length: int, *, start: int = 0) -> None:
        """Let a slot hold the first `length` positions of another, which keeps them; the first `start` it has already.

        Of an encoder-decoder it gets the other's source, too.
        """
        self._check(goal)
        self._check(source)
        if not self.can_copy or not 0 <= start <= length <= self.lengths[source] or start > self.lengths[goal]:
            raise MisuseError(f"{length} positions of slot {source} cannot be copied; prefill them instead.")
        for array, state in zip(self.arrays, self.spec.states, strict=True):
            assert state.axis is not None
            rows = np.moveaxis(array, state.axis, 1)  # [row, position, ...], a view
            rows[self._rows[goal], start:length] = rows[self._rows[source], start:length]
        if self.cross is not None:
            self.cross.copy(source, goal)
        self.lengths[goal] = length

    def reserve(self, slot: int, count: int) -> None:
        """Check that `count` more positions fit; raises PromptTooLongError with both numbers."""
        self._check(slot)
        if (needed := int(self.lengths[slot]) + count) > self.capacity:
            raise PromptTooLongError(
                f"Slot {slot} would need {needed} positions, but the cache holds {self.capacity}; "
                f"load with max_length={needed} or shorten the prompt."
            )

    def advance(self, slot: int, count: int) -> None:
        """Record that `count` positions were written."""
        self.lengths[slot] += count

    def spans(self, slots: Iterable[int]) -> list[tuple[int, int]]:
        """Cover `slots` by ranges [low, high) of rows that one step may run on, none of which was moved by `gather`.

        A range may include idle rows: the step then writes one position after their last, which is never read and is
        overwritten later. A full idle row has no such position, so no range includes one.
        """
        spans: list[tuple[int, int]] = []
        for slot in sorted(slots):
            self._check(slot)
            if spans and bool((self.lengths[spans[-1][1] : slot] < self.capacity).all()):
                spans[-1] = (spans[-1][0], slot + 1)
            else:
                spans.append((slot, slot + 1))
        return spans

    def gather(self, slots: Iterable[int]) -> tuple[list[int], list[Move]]:
        """Bring `slots` into the first rows: as few of 1, 2, 4, 8, ... rows as hold them, at most all.

        Other slots in these rows idle, as in `spans`. A full one is moved out; where too many are full to reach a power
        of two without them, fewer rows are used.

        Returns:
            The slot of each of these rows, and the moves that the owner of keys and values must make, in this order.
        """
        asked, placed = set(slots), self._placed
        for slot in asked:
            self._check(slot)
        count = min(1 << (len(asked) - 1).bit_length(), self.num_slots)
        first = placed[:count]
        if asked.issubset(first) and all(self.lengths[slot] < self.capacity for slot in first if slot not in asked):
            return first, []
        lengths = self.lengths.tolist()
        holds = [length > 0 or self._has_source(slot) for slot, length in enumerate(lengths)]
        full = {slot for slot, length in enumerate(lengths) if length >= self.capacity} - asked
        count = min(count, self.num_slots - len(full))
        # Empty ones first: moving them copies nothing.
        idle = sorted((slot for slot in placed if slot not in asked | full), key=holds.__getitem__)
        leaving = [slot for slot in placed[:count] if slot in full]
        coming = [slot for slot in placed[count:] if slot in asked]
        coming += [slot for slot in idle if self._rows[slot] >= count][: max(len(leaving) - len(coming), 0)]
        leaving += [slot for slot in idle if self._rows[slot] < count]
        moves = []
        for came, left in zip(coming, leaving, strict=False):
            source, goal = self._rows[came], self._rows[left]
            if holds[came]:
                moves.append(Move(source, goal, is_exchange=holds[left]))
            elif holds[left]:
                moves.append(Move(goal, source, is_exchange=False))
            self._exchange(came, left)
        return placed[:count], moves

    def row(self, slot: int) -> int:
        """The row of a slot."""
        return self._rows[slot]

    @property
    def row_bytes(self) -> list[int]:
        """Bytes of one row of each state."""
        return self._row_bytes

    def address(self, index: int, row: int) -> int:
        """Address of a row's first byte in the array of the state `index`."""
        return self._bases[index] + row * self._row_bytes[index]

    def _has_source(self, slot: int) -> bool:
        return self.cross is not None and self.cross.keys[slot] is not None

    def _exchange(self, one: int, other: int) -> None:
        """Exchange the rows of two slots."""
        self._rows[one], self._rows[other] = self._rows[other], self._rows[one]
        self._placed[self._rows[one]], self._placed[self._rows[other]] = one, other

    def _check(self, slot: int) -> None:
        if not 0 <= slot < self.num_slots or slot in self._free:
            raise MisuseError(f"Slot {slot} is not in use; admit it first.")
