"""Ratios between systems, from runs in turns."""

from collections.abc import Sequence

import numpy as np

from piston.bench.metrics import metric_of, of_start, samples_of
from piston.bench.report import Ratio, System
from piston.core.statistics import Array, ConfidenceInterval, median_estimate

COMPARED = (
    *("ttft", "tpot", "total", "e2el", "prefill", "encode", "decode", "rtf", "first_segment"),
    *("throughput", "goodput"),
)
COMPARED_STARTS = ("first_token", "load", "peak")
_SEED = 1


def ratios_of(systems: Sequence[System]) -> tuple[Ratio, ...]:
    """The first system against each of the others; above 1 the first is better."""
    own, *rivals = systems
    found: list[Ratio] = []
    for rival in rivals:
        for ours, theirs in zip(own.measured, rival.measured, strict=True):
            pairs = _paired(samples_of(ours), samples_of(theirs), COMPARED)
            found += [Ratio(rival=rival.name, metric=m, setting=ours.setting, ratio=r) for m, r in pairs]
        pairs = _paired([of_start(s) for s in own.starts], [of_start(s) for s in rival.starts], COMPARED_STARTS)
        found += [Ratio(rival=rival.name, metric=name, setting=None, ratio=ratio) for name, ratio in pairs]
    return tuple(found)


def ratio_of_pairs(
    ours: Sequence[float], theirs: Sequence[float], rng: np.random.Generator, *, is_better_high: bool = False
) -> ConfidenceInterval:
    """The median over pairs of neighbouring runs: what drifts between pairs drops out of each ratio.

    Above 1 ours are better, whether the figures are times or, with `is_better_high`, rates.
    """
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return median_estimate(ratios if is_better_high else [1 / ratio for ratio in ratios], rng)


def _paired(
    ours: Sequence[dict[str, Array]], theirs: Sequence[dict[str, Array]], names: Sequence[str]
) -> list[tuple[str, ConfidenceInterval]]:
    """Ratios of the medians of each run, by figure."""
    if not ours:
        return []
    rng, found = np.random.default_rng(_SEED), []
    for name in names:
        if all(_is_positive(sample, name) for sample in (*ours, *theirs)):
            mine, other = ([float(np.median(sample[name])) for sample in samples] for samples in (ours, theirs))
            found.append((name, ratio_of_pairs(mine, other, rng, is_better_high=metric_of(name).is_better_high)))
    return found


def _is_positive(sample: dict[str, Array], name: str) -> bool:
    """Whether a run has this figure, and a ratio to it exists."""
    return name in sample and bool(np.median(sample[name]) > 0)
