"""Observers see a tensor's values pass by and say which range of them integers should cover.

All are streaming and bounded in memory, and can be merged: two observers of parts of the data become one of the whole.

| method     | remembers                 | range                                        | merge and order          |
|------------|---------------------------|----------------------------------------------|--------------------------|
| minmax     | extremes                  | all values                                   | exact, in any order      |
| moving     | weighted sums of extremes | moving average of the extremes of the arrays | exact, in the data's order|
| percentile | histogram                 | all but the largest magnitudes               | exact, in any order      |
| entropy    | histogram                 | least KL divergence                          | exact, in any order      |
| mse        | histogram                 | least squared error                          | exact, in any order      |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from piston.calibration.numeric.clipping import Counts, entropy_clip, mse_clip, percentile_clip
from piston.calibration.numeric.histogram import Histogram, State
from piston.calibration.numeric.min_max import Floats, extremes
from piston.core.errors import CalibrationError

Method = Literal["minmax", "moving", "percentile", "entropy", "mse"]
PERCENTILE = 99.99
MOMENTUM = 0.05  # share of the newest array in a moving average


@dataclass(frozen=True, slots=True)
class Range:
    """What integers should cover: float32 arrays, [] for a tensor, [channels] for its channels."""

    low: Floats
    high: Floats

    @property
    def amax(self) -> Floats:
        """Half the width of the smallest symmetric range around it."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


class Observer(Protocol):
    """What all of them do."""

    @property
    def kind(self) -> str:
        """Names whatever shapes the state: states of one kind can be restored and merged."""

    def update(self, array: Floats) -> None:
        """See an array [..., channels]; raises CalibrationError if it is not finite."""

    def merge(self, other: Self) -> None:
        """See all that another observer of the same kind has seen, after what this one has."""

    def range(self) -> Range:
        """The range so far; raises CalibrationError before anything was seen."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Everything seen, for a file; empty if nothing was."""

    def restore(self, state: State) -> None:
        """Become what `state` was taken of."""


def make_observer(
    method: Method, name: str, *, per_channel: bool = False, percentile: float = PERCENTILE, levels: int = 127
) -> Observer:
    """An observer of the tensor `name`; `levels` is the largest integer, 7 for INT4."""
    if method == "minmax":
        return MinMax(name, per_channel=per_channel)
    if method == "moving":
        return MovingAverage(name, per_channel=per_channel)
    if method == "percentile":
        return Percentile(name, percentile, per_channel=per_channel)
    if method == "entropy":
        return Entropy(name, levels=levels, per_channel=per_channel)
    return MSE(name, levels=levels, per_channel=per_channel)


class MinMax:
    """Covers every value seen."""

    def __init__(self, name: str, *, per_channel: bool = False) -> None:
        self.name, self.per_channel = name, per_channel
        self._extremes: tuple[Floats, Floats] | None = None

    @property
    def kind(self) -> str:
        """See Observer."""
        return f"minmax, {_granularity(self.per_channel)}"

    def update(self, array: Floats) -> None:
        """See Observer."""
        if array.size:
            self._include(*extremes(array, self.name, per_channel=self.per_channel))

    def merge(self, other: Self) -> None:
        """See Observer."""
        if other._extremes is not None:
            self._include(*other._extremes)

    def range(self) -> Range:
        """See Observer."""
        if self._extremes is None:
            raise _unseen(self.name)
        return _range(*self._extremes, per_channel=self.per_channel)

    def state(self) -> dict[str, NDArray[Any]]:
        """See Observer."""
        return {} if self._extremes is None else {"low": self._extremes[0], "high": self._extremes[1]}

    def restore(self, state: State) -> None:
        """See Observer."""
        self._extremes = (state["low"], state["high"]) if state else None

    def _include(self, low: Floats, high: Floats) -> None:
        if self._extremes is not None:
            low, high = np.minimum(self._extremes[0], low), np.maximum(self._extremes[1], high)
        self._extremes = (low, high)


class MovingAverage:
    """Covers the exponential moving average of each array's extremes, so that one odd array counts for little.

    Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR
    2018, section 3.1. Corrected for the start as in Adam: weights of the arrays seen sum to one, and a merge is exact.
    """

    def __init__(self, name: str, momentum: float = MOMENTUM, *, per_channel: bool = False) -> None:
        self.name, self.momentum, self.per_channel = name, momentum, per_channel
        self._sums: NDArray[np.float64] | None = None  # (low and high, channels)
        self._num_arrays = 0

    @property
    def kind(self) -> str:
        """See Observer."""
        return f"moving {self.momentum}, {_granularity(self.per_channel)}"

    def update(self, array: Floats) -> None:
        """See Observer."""
        if array.size:
            seen = np.stack(extremes(array, self.name, per_channel=self.per_channel)).astype(np.float64)
            self._append(self.momentum * seen, 1)

    def merge(self, other: Self) -> None:
        """See Observer."""
        if other._sums is not None:
            self._append(other._sums, other._num_arrays)

    def range(self) -> Range:
        """See Observer."""
        if self._sums is None:
            raise _unseen(self.name)
        low, high = (self._sums / (1 - (1 - self.momentum) ** self._num_arrays)).astype(np.float32)
        return _range(low, high, per_channel=self.per_channel)

    def state(self) -> dict[str, NDArray[Any]]:
        """See Observer."""
        return {} if self._sums is None else {"sums": self._sums, "num_arrays": np.array(self._num_arrays)}

    def restore(self, state: State) -> None:
        """See Observer."""
        self._sums = state["sums"] if state else None
        self._num_arrays = int(state["num_arrays"]) if state else 0

    def _append(self, sums: NDArray[np.float64], num_arrays: int) -> None:
        if self._sums is not None:
            sums = sums + self._sums * (1 - self.momentum) ** num_arrays
        self._sums, self._num_arrays = sums, self._num_arrays + num_arrays


class HistogramObserver:
    """Covers the magnitudes that `clip(counts, width, largest)` of `piston.calibration.numeric.clipping` leaves.

    The range is symmetric, cut to what was seen. One histogram serves every method: `restore` another one's state.
    """

    def __init__(
        self, name: str, clip: Callable[[Counts, float, float], float], *, per_channel: bool, bins: int | None
    ) -> None:
        self.name = name
        self.histogram = Histogram(per_channel=per_channel, bins=bins)
        self._clip = clip

    @property
    def kind(self) -> str:
        """See Observer."""
        return f"histogram {self.histogram.bins}, {_granularity(self.histogram.per_channel)}"

    def update(self, array: Floats) -> None:
        """See Observer."""
        self.histogram.update(array, self.name)

    def merge(self, other: Self) -> None:
        """See Observer."""
        self.histogram.merge(other.histogram)

    def range(self) -> Range:
        """See Observer."""
        found = self.histogram
        if found.is_empty:
            raise _unseen(self.name)
        largest = np.maximum(np.abs(found.low), np.abs(found.high)).astype(np.float64)
        rows = zip(found.magnitudes(), found.width, largest, strict=True)
        clips = [self._clip(counts, float(width), float(top)) if top else 0.0 for counts, width, top in rows]
        amax = np.array(clips, np.float32)
        low, high = np.maximum(found.low, -amax), np.minimum(found.high, amax)
        return _range(low, high, per_channel=found.per_channel)

    def state(self) -> dict[str, NDArray[Any]]:
        """See Observer."""
        return {} if self.histogram.is_empty else self.histogram.state()

    def restore(self, state: Mapping[str, NDArray[Any]]) -> None:
        """See Observer."""
        if state:
            self.histogram.restore(state)


class Percentile(HistogramObserver):
    """Covers `percentile` percent of the magnitudes."""

    def __init__(
        self, name: str, percentile: float = PERCENTILE, *, per_channel: bool = False, bins: int | None = None
    ) -> None:
        def clip(counts: Counts, width: float, largest: float) -> float:
            return percentile_clip(counts, width, largest, percentile)

        super().__init__(name, clip, per_channel=per_channel, bins=bins)


class Entropy(HistogramObserver):
    """Loses least information by KL divergence (Migacz, GTC 2017); `levels` is the largest integer."""

    def __init__(self, name: str, *, levels: int = 127, per_channel: bool = False, bins: int | None = None) -> None:
        def clip(counts: Counts, width: float, largest: float) -> float:
            return entropy_clip(counts, width, largest, levels + 1)

        super().__init__(name, clip, per_channel=per_channel, bins=bins)


class MSE(HistogramObserver):
    """Makes the squared error of rounding and clipping least; `levels` is the largest integer."""

    def __init__(self, name: str, *, levels: int = 127, per_channel: bool = False, bins: int | None = None) -> None:
        def clip(counts: Counts, width: float, largest: float) -> float:
            return mse_clip(counts, width, largest, levels)

        super().__init__(name, clip, per_channel=per_channel, bins=bins)


def _range(low: Floats, high: Floats, *, per_channel: bool) -> Range:
    return Range(low, high) if per_channel else Range(low[0, ...], high[0, ...])


def _granularity(per_channel: bool) -> str:  # noqa: FBT001
    return "channels" if per_channel else "tensor"


def _unseen(name: str) -> CalibrationError:
    return CalibrationError(f"{name} was never computed on the calibration rows, so it has no range.")
