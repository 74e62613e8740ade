"""Keys and values of the sources of a decoder's rows, which the encoder writes once.

Memory is [num_slots, heads, width, head_dim] for each state: `width` is as many positions as the longest source of the
rows in use needs, so that a step does not read what no row has. It changes when a source is written, and the rows in
use are then moved. A slot's states are in the row of its own number.
"""

import math
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.core.bundle.interface import CacheSpec
from piston.core.errors import HostMemoryError, PromptTooLongError

STEP = 32  # positions: the width is a multiple, since each width has its own bindings
STORED = {"float32": np.float32, "float16": np.float16}


class Sources:
    """Which sources the slots 0 .. num_slots-1 hold, of up to `capacity` positions each; not where their states are.

    Attributes:
        lengths: positions of each slot's source, int64 [num_slots]; at least 1, so that a step on an idle row is of
            finite numbers.
        keys: of each slot's source; None: it holds none.
    """

    def __init__(self, num_slots: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths = np.ones(num_slots, np.int64)
        self.keys: list[Hashable] = [None] * num_slots

    def check(self, length: int) -> None:
        """Raise PromptTooLongError for a source that does not fit."""
        if length > self.capacity:
            raise PromptTooLongError(
                f"The source has {length:,} tokens, but the engine holds {self.capacity:,}; shorten it, or load with a "
                "larger max_length."
            )

    def hold(self, slot: int, length: int, key: Hashable) -> None:
        """Record the source of a slot."""
        self.lengths[slot], self.keys[slot] = length, key

    def copy(self, source: int, goal: int) -> None:
        """Let a slot have the source of another."""
        self.lengths[goal], self.keys[goal] = self.lengths[source], self.keys[source]

    def release(self, slot: int) -> None:
        """Forget the source of a slot."""
        self.lengths[slot], self.keys[slot] = 1, None


class CrossStates(Sources):
    """The sources of the slots with their states in host memory."""

    def __init__(self, spec: CacheSpec, num_slots: int, capacity: int) -> None:
        super().__init__(num_slots, capacity)
        self.spec = spec
        self.is_fixed = all(state.axis is None for state in spec.states)  # every source has as many positions
        self.width = self.capacity if self.is_fixed else min(STEP, capacity)
        try:
            self._memory = [
                np.zeros(math.prod(state.sizes(num_slots, capacity)), STORED[state.dtype]) for state in spec.states
            ]
        except MemoryError:
            needed = sum(spec.array_bytes(num_slots, capacity))
            raise HostMemoryError(
                f"What {num_slots:,} rows read of sources of {capacity:,} positions takes {needed / 1e9:,.1f} GB, more "
                "than there is; lower max_batch or max_length."
            ) from None

    @property
    def arrays(self) -> list[NDArray[Any]]:
        """Views of each state at the width now, [num_slots, heads, width, head_dim]."""
        return self._views(self.width)

    def write(self, slot: int, states: Sequence[NDArray[Any]], length: int, key: Hashable, used: Iterable[int]) -> None:
        """Store the states [1, heads, positions, head_dim] of a source of `length` positions; `used` slots are kept."""
        for place, state in zip(self.places(slot, length, used), states, strict=True):
            place[:] = state[:, :, :length]
        self.hold(slot, length, key)

    def places(self, slot: int, length: int, used: Iterable[int]) -> list[NDArray[Any]]:
        """Where the states of a source go: views [1, heads, length, head_dim]. Once they are there, hold its key.

        Raises:
            PromptTooLongError: the source does not fit.
        """
        self.check(length)
        self.hold(slot, length, None)
        self._fit([other for other in used if other != slot], length)
        return [view[slot : slot + 1, :, :length] for view in self.arrays]

    def copy(self, source: int, goal: int) -> None:
        """Let a slot have the source of another; nothing is copied where it has."""
        if self.keys[source] is not None and self.keys[source] == self.keys[goal]:
            return
        length = int(self.lengths[source])
        for view in self.arrays:
            view[goal, :, :length] = view[source, :, :length]
        super().copy(source, goal)

    def _fit(self, used: Sequence[int], length: int) -> None:
        """Change the width to what the slots in use and a source of `length` positions need."""
        if self.is_fixed:
            return
        longest = max([length, *(int(self.lengths[slot]) for slot in used)])
        width = min(math.ceil(longest / STEP) * STEP, self.capacity)
        if width == self.width:
            return
        common = min(width, self.width)
        for old, new in zip(self._views(self.width), self._views(width), strict=True):
            kept = old[list(used), :, :common].copy()  # the two views share memory
            new.fill(0)
            new[list(used), :, :common] = kept
        self.width = width

    def _views(self, width: int) -> list[NDArray[Any]]:
        rows = len(self.lengths)
        shapes = [state.sizes(rows, width) for state in self.spec.states]
        return [memory[: math.prod(shape)].reshape(shape) for memory, shape in zip(self._memory, shapes, strict=True)]
