"""How sure a figure is: intervals of 95 %. Arrays in, two numbers out, the generator passed in."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
_Z = 1.959963984540054  # of the normal distribution, two-sided
_BLOCK = 2**20  # picks held at a time


class Interval(NamedTuple):
    """Where the figure lies, with the confidence above."""

    low: float
    high: float


def wilson(hits: int, total: int) -> Interval:
    """Of a share `hits / total` (Wilson's score interval, right at 0 and 1 too)."""
    share, spread = hits / total, _Z * _Z / total
    centre = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return Interval(0.0 if hits == 0 else low, 1.0 if hits == total else high)


def bootstrap_mean(sums: Array, counts: Array, rng: np.random.Generator, resamples: int = 2000) -> Interval | None:
    """Of sum(sums) / sum(counts), by drawing whole windows with replacement (percentile bootstrap).

    Tokens of one window are not independent, so windows are drawn, not tokens. Below about twenty windows the
    interval is somewhat too narrow; of one window there is none. Pairs come by passing the sums of the difference.
    """
    num = len(sums)
    if num == 1:
        return None
    rows = max(1, _BLOCK // num)
    means = []
    for done in range(0, resamples, rows):
        picks = rng.integers(num, size=(min(rows, resamples - done), num))
        means.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
