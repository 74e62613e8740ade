"""Where to clip absolute values before they become integers: pure functions of one histogram of magnitudes.

Each takes counts int64 [bins] of |x|, the width of a bin and the largest |x|, and returns the clipping value, greater
than zero unless everything is zero.
"""

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Reals = NDArray[np.float64]

ENTROPY_BINS = 2048  # as TensorRT has
ENTROPY_LEVELS = 128  # magnitudes of INT8
FINEST = 2.0**-8  # of the largest value: the smallest clipping value that `mse_clip` tries
CANDIDATES, REFINED = 129, 33


def percentile_clip(counts: Counts, width: float, largest: float, percentile: float) -> float:
    """The upper edge of the bin below which `percentile` percent of the values lie (inverted CDF)."""
    cumulative = np.cumsum(counts)
    rank = max(1, int(np.ceil(cumulative[-1] * (percentile / 100))))
    index = int(np.searchsorted(cumulative, rank))
    return min((index + 1) * width, largest)


def mse_clip(counts: Counts, width: float, largest: float, levels: int = 127) -> float:
    """The value of least squared error of rounding to `levels` magnitudes, error of clipping included.

    A geometric grid finds the valley, a finer one its floor. Every value counts as the middle of its bin.
    """
    occupied = np.flatnonzero(counts)
    values, weights = ((occupied + 0.5) * width).astype(np.float64), counts[occupied].astype(np.float64)
    grid = (largest * np.geomspace(FINEST, 1.0, CANDIDATES)).astype(np.float64)
    best = int(_squared_errors(values, weights, grid, levels).argmin())
    low, high = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, CANDIDATES - 1)])
    finer = np.linspace(low, high, REFINED).astype(np.float64)
    return float(finer[_squared_errors(values, weights, finer, levels).argmin()])


def entropy_clip(counts: Counts, width: float, largest: float, levels: int = ENTROPY_LEVELS) -> float:
    """The value of least KL divergence from the clipped distribution to its quantized form.

    Migacz, "8-bit Inference with TensorRT", GTC 2017; the procedure of TensorRT's entropy calibrator and of ONNX
    Runtime's `get_entropy_threshold`. Two details differ from the latter: levels share the bins evenly (there the last
    one takes the remainder), and a candidate whose quantized form is zero where the clipped one is not diverges
    infinitely (there it is smoothed).
    """
    if (factor := len(counts) // ENTROPY_BINS) > 1:
        counts, width = counts.reshape(ENTROPY_BINS, factor).sum(axis=1), width * factor
    used = int(np.flatnonzero(counts)[-1]) + 1
    candidates = range(min(levels, used), used + 1)
    divergences = [_divergence(counts, size, levels) for size in candidates]
    return min(candidates[int(np.argmin(divergences))] * width, largest)


def _squared_errors(values: Reals, weights: Reals, clips: Reals, levels: int) -> Reals:
    """One error for each clipping value, [clips]; a few of them at a time, to bound memory."""
    at_once = max(1, 2**18 // len(values))
    errors = []
    for start in range(0, len(clips), at_once):
        steps = clips[start : start + at_once, None] / levels
        rounded = np.minimum(np.rint(values / steps), levels) * steps  # (clips, values)
        errors.append(np.square(rounded - values) @ weights)
    return np.concatenate(errors)


def _divergence(counts: Counts, size: int, levels: int) -> float:
    """KL(P || Q): P the first `size` bins with all outliers in the last, Q their inliers in `levels` levels."""
    inliers = counts[:size]
    clipped = inliers.astype(np.float64)
    clipped[-1] += counts[size:].sum()
    occupied = clipped > 0
    starts = np.arange(min(levels, size)) * size // min(levels, size)
    sums, spread = np.add.reduceat(inliers, starts), np.add.reduceat(occupied.astype(np.int64), starts)
    lengths = np.diff(np.append(starts, size))
    quantized = np.repeat(sums / np.maximum(spread, 1), lengths)[occupied]
    if not quantized.all():
        return float(np.inf)
    p, q = clipped[occupied] / clipped.sum(), quantized / quantized.sum()
    return float(np.sum(p * np.log(p / q)))
