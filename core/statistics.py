"""Confidence intervals of 95 % for measured figures. The random generator is passed in.

Whole runs or windows are resampled, never single tokens: tokens of one run share what disturbed it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

CONFIDENCE = 0.95
PERCENTS = (50, 90, 95, 99)
RESAMPLES = 1000
_ENDS = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
_Z = 1.959963984540054  # of the normal distribution, two-sided
_BLOCK = 2**20  # resamples in memory at a time


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """A figure and its interval of 95 %; without an interval where there is only one run or window."""

    value: float
    low: float | None = None
    high: float | None = None


class Interval(NamedTuple):
    """The interval with the confidence above; None without one."""

    low: float
    high: float


def wilson(hits: int, total: int) -> Interval:
    """The interval of a share `hits / total` (Wilson's score interval, valid at 0 and 1 too)."""
    share, spread = hits / total, _Z * _Z / total
    centre = share + spread / 2
    half = _Z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    low, high = (centre - half) / (1 + spread), (centre + half) / (1 + spread)
    return Interval(0.0 if hits == 0 else low, 1.0 if hits == total else high)


def bootstrap_mean(sums: Array, counts: Array, rng: np.random.Generator, resamples: int = 2000) -> Interval | None:
    """The interval of sum(sums) / sum(counts), by resampling whole windows (percentile bootstrap).

    Tokens of one window are not independent, so windows are resampled, not tokens. Below about twenty windows the
    interval is somewhat too narrow; one window gives none. For paired data pass the sums of the differences.
    """
    num = len(sums)
    if num == 1:
        return None
    rows = max(1, _BLOCK // num)
    means = []
    for done in range(0, resamples, rows):
        picks = rng.integers(num, size=(min(rows, resamples - done), num))
        means.append(sums[picks].sum(axis=1) / counts[picks].sum(axis=1))
    low, high = np.quantile(np.concatenate(means), _ENDS)
    return Interval(float(low), float(high))


def estimates(
    runs: Sequence[Array], rng: np.random.Generator, resamples: int = RESAMPLES
) -> dict[str, ConfidenceInterval]:
    """p50, p90, p95 and p99 of all values of the runs, with bootstrap intervals of 95 % over runs.

    `runs` holds one array for each run, of any lengths; the interval of a single run is None.
    """
    values = np.percentile(np.concatenate(runs), PERCENTS)
    if len(runs) == 1:
        return {
            f"p{percent}": ConfidenceInterval(float(value)) for percent, value in zip(PERCENTS, values, strict=True)
        }
    picks = rng.integers(len(runs), size=(resamples, len(runs)))
    drawn = percentiles_of(runs, picks, PERCENTS)
    low, high = np.quantile(drawn, _ENDS, axis=1)
    return {
        f"p{percent}": ConfidenceInterval(float(values[index]), float(low[index]), float(high[index]))
        for index, percent in enumerate(PERCENTS)
    }


def percentiles_of(runs: Sequence[Array], picks: NDArray[np.int64], percents: Sequence[int]) -> Array:
    """Percentiles over all values of chosen runs, shape (percents, choices); `picks` (choices, runs) are indices.

    Runs of one length are computed together, which is much faster.
    """
    if len({len(run) for run in runs}) == 1:
        table = np.stack(runs)  # (runs, values)
        found: Array = np.percentile(table[picks].reshape(len(picks), -1), percents, axis=1)
        return found
    chosen = [np.percentile(np.concatenate([runs[index] for index in pick]), percents) for pick in picks]
    return np.stack(chosen, axis=1)


def median_estimate(
    values: Sequence[float], rng: np.random.Generator, resamples: int = RESAMPLES
) -> ConfidenceInterval:
    """The median of one value for each run, with its bootstrap interval."""
    table = np.asarray(values, np.float64)
    median = float(np.median(table))
    if len(table) == 1:
        return ConfidenceInterval(median)
    drawn = np.median(table[rng.integers(len(table), size=(resamples, len(table)))], axis=1)
    low, high = np.quantile(drawn, _ENDS)
    return ConfidenceInterval(median, float(low), float(high))
