"""Counts of values in equal bins whose range doubles when a value lies outside: no count is lost, no order matters.

The range is [-2^e, 2^e) with the smallest e that holds every value, so bins of a wider range are exact unions of those
of a narrower one. Widening adds neighbours, and the histogram of some data is the same in whatever order, in however
many pieces and through however many merges the data came.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from piston.calibration.numeric.min_max import Floats, extremes

TENSOR_BINS, CHANNEL_BINS = 2**14, 2**8  # on each side of zero: 256 kB for a tensor, 2 kB for a channel
SMALLEST = -64  # what is smaller than 2^-64 shares the bins next to zero

State = Mapping[str, NDArray[Any]]


class Histogram:
    """A histogram of a whole tensor, or one for each channel of its last axis.

    Args:
        per_channel: whether each channel has its own.
        bins: on each side of zero, a power of two.

    Attributes:
        counts: integer [channels or 1, 2 * bins]; bin i holds [(i - bins) * width, (i - bins + 1) * width).
        exponents: int64 [channels or 1]; e of each range.
        low, high: float32 [channels or 1]; the exact extremes.
    """

    def __init__(self, *, per_channel: bool = False, bins: int | None = None) -> None:
        self.per_channel = per_channel
        self.bins = bins or (CHANNEL_BINS if per_channel else TENSOR_BINS)
        if self.bins & (self.bins - 1):
            raise ValueError(f"bins must be a power of two, not {self.bins}")
        # Channels are many and their counts are tokens; a tensor's are tokens times channels.
        self._dtype: type[np.integer[Any]] = np.uint32 if per_channel else np.int64
        self.counts: NDArray[Any]
        self._reset(0)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted yet."""
        return not len(self.counts)

    @property
    def width(self) -> NDArray[np.float64]:
        """Of a bin, [channels or 1]."""
        return np.ldexp(1.0, self.exponents - self._log_bins)

    def update(self, array: Floats, name: str = "array") -> None:
        """Count every value of an array [..., channels]; raises CalibrationError as `extremes` does."""
        if not array.size:
            return
        low, high = extremes(array, name, per_channel=self.per_channel)
        self._cover(low, high)
        values = array.reshape(-1, len(low)) if self.per_channel else array.reshape(-1)
        index = np.floor(values * np.ldexp(np.float32(1), self._log_bins - self.exponents)).astype(np.intp)
        index += self.bins
        if self.per_channel:
            index += np.arange(len(low)) * (2 * self.bins)
        found = np.bincount(index.reshape(-1), minlength=self.counts.size)
        np.add(self.counts, found.reshape(self.counts.shape), out=self.counts, casting="unsafe")

    def merge(self, other: "Histogram") -> None:
        """Add what another histogram of the same kind counted, and leave that one as it was."""
        assert (self.per_channel, self.bins) == (other.per_channel, other.bins)
        if other.is_empty:
            return
        self._cover(other.low, other.high)
        np.add(self.counts, _coarsened(other.counts, self.exponents - other.exponents), out=self.counts)

    def magnitudes(self) -> NDArray[np.int64]:
        """Counts of absolute values, [channels or 1, bins]."""
        counts = self.counts.astype(np.int64)
        return counts[:, self.bins :] + counts[:, self.bins - 1 :: -1]

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything, for a file."""
        return {"counts": self.counts, "exponents": self.exponents, "low": self.low, "high": self.high}

    def restore(self, state: State) -> None:
        """Become what `state` was taken of."""
        self.counts = state["counts"].astype(self._dtype)
        self.exponents = state["exponents"].astype(np.int64)
        self.low, self.high = state["low"].astype(np.float32), state["high"].astype(np.float32)

    @property
    def _log_bins(self) -> int:
        return self.bins.bit_length() - 1

    def _reset(self, channels: int) -> None:
        self.counts = np.zeros((channels, 2 * self.bins), self._dtype)
        self.exponents = np.full(channels, SMALLEST, np.int64)
        self.low, self.high = np.full(channels, np.inf, np.float32), np.full(channels, -np.inf, np.float32)

    def _cover(self, low: Floats, high: Floats) -> None:
        """Widen until low and high fit."""
        if self.is_empty:
            self._reset(len(low))
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        # frexp: largest = m * 2^e with m in [0.5, 1), so 2^e is the smallest power above it.
        needed = np.frexp(np.maximum(-self.low, self.high))[1].astype(np.int64)
        exponents = np.maximum(self.exponents, needed)
        self.counts = _coarsened(self.counts, exponents - self.exponents)
        self.exponents = exponents


def _coarsened(counts: NDArray[Any], shifts: NDArray[np.int64]) -> NDArray[Any]:
    """Counts [channels, 2 * bins] over ranges 2^shift times as wide, a shift for each channel."""
    if not shifts.any():
        return counts
    counts = counts.copy()
    size = counts.shape[1]
    shifts = np.minimum(shifts, (size // 2).bit_length() - 1)  # then all lies in the two bins next to zero
    for shift in np.unique(shifts[shifts > 0]):
        chosen = np.flatnonzero(shifts == shift)
        sums = counts[chosen].reshape(len(chosen), size >> shift, 1 << shift).sum(axis=2)
        margin = (size - (size >> shift)) // 2
        counts[chosen] = 0
        counts[chosen, margin : size - margin] = sums
    return counts
