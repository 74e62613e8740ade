"""Quantiles of repeated runs and how sure they are. Arrays in, numbers out, the generator passed in.

What is drawn with replacement is whole runs, never single tokens: tokens of one run share what disturbed it.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from piston.core.statistics import Estimate

Array = NDArray[np.float64]

CONFIDENCE = 0.95
PERCENTS = (50, 90, 95, 99)
RESAMPLES = 1000


def estimates(runs: Sequence[Array], rng: np.random.Generator, resamples: int = RESAMPLES) -> dict[str, Estimate]:
    """p50, p90, p95 and p99 of all values of the runs, with bootstrap intervals of 95 % over runs.

    `runs` holds one array for each run, all of one length; the interval of a single run is None.
    """
    table = np.stack(runs)  # (runs, values)
    values = np.percentile(table, PERCENTS)
    if len(table) == 1:
        return {f"p{percent}": Estimate(float(value)) for percent, value in zip(PERCENTS, values, strict=True)}
    picks = rng.integers(len(table), size=(resamples, len(table)))
    drawn = np.percentile(table[picks].reshape(resamples, -1), PERCENTS, axis=1)  # (percents, resamples)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=1)
    return {
        f"p{percent}": Estimate(float(values[index]), float(low[index]), float(high[index]))
        for index, percent in enumerate(PERCENTS)
    }


def median_estimate(values: Sequence[float], rng: np.random.Generator, resamples: int = RESAMPLES) -> Estimate:
    """The median of one value for each run, with its bootstrap interval."""
    table = np.asarray(values, np.float64)
    median = float(np.median(table))
    if len(table) == 1:
        return Estimate(median)
    drawn = np.median(table[rng.integers(len(table), size=(resamples, len(table)))], axis=1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(median, float(low), float(high))
