"""A chart axis: maps values to pixels and chooses round tick values."""

import math
from collections.abc import Sequence
from typing import NamedTuple

_TICKS, _FEWEST, _DECADE = 5, 3, 10.0
_FACTORS = ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 7, 8, 9), tuple(index / 10 for index in range(10, 100)))


class Axis(NamedTuple):
    """Maps a range of values to the pixels first .. last, linearly or by decades."""

    low: float
    high: float
    first: float
    last: float
    is_log: bool = False

    def at(self, value: float) -> float:
        """Pixels of a value, kept within the axis."""
        kept = min(max(value, self.low), self.high)
        share = (
            math.log(kept / self.low) / math.log(self.high / self.low)
            if self.is_log
            else (kept - self.low) / (self.high - self.low)
        )
        return self.first + share * (self.last - self.first)

    def ticks(self) -> list[float]:
        """Round numbers within the axis."""
        if not self.is_log:
            return [tick for tick in ticks(self.low, self.high) if self.low <= tick <= self.high * (1 + 1e-9)]
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for factors in _FACTORS:
            candidates = [factor * _DECADE**power for power in powers for factor in factors]
            found = [tick for tick in candidates if self.low * (1 - 1e-9) <= tick <= self.high * (1 + 1e-9)]
            if len(found) >= _FEWEST:
                break
        return found


def axis_of(values: Sequence[float], first: float, last: float, *, is_log: bool = False) -> Axis:
    """The axis that holds all values, with round ends unless it goes by decades."""
    low, high = min(values), max(values)
    if is_log:
        return Axis(low / 1.15, high * 1.15, first, last, is_log=True)
    if high - low <= 1e-9 * max(abs(high), 1e-300):
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    found = ticks(low, high)
    return Axis(found[0], found[-1], first, last)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, some five of them."""
    raw = (high - low) / (_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
