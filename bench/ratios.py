"""Ratios between systems, from runs in turns."""

from collections.abc import Sequence

import numpy as np

from piston.bench.metrics import METRICS, of_run, of_start
from piston.bench.report import Ratio, System
from piston.core.statistics import Array, ConfidenceInterval, median_estimate

COMPARED = ("ttft", "tpot", "total", "prefill", "decode")
COMPARED_STARTS = ("first_token", "load", "peak")
_SEED = 1


def ratios_of(systems: Sequence[System]) -> tuple[Ratio, ...]:
    """The first system against each of the others; above 1 the first is better."""
    own, *rivals = systems
    found: list[Ratio] = []
    for rival in rivals:
        for ours, theirs in zip(own.settings, rival.settings, strict=True):
            mine = [of_run(run, ours.setting) for run in ours.runs]
            other = [of_run(run, theirs.setting) for run in theirs.runs]
            pairs = _paired(mine, other, COMPARED)
            found += [Ratio(rival=rival.name, metric=m, setting=ours.setting, ratio=r) for m, r in pairs]
        pairs = _paired([of_start(s) for s in own.starts], [of_start(s) for s in rival.starts], COMPARED_STARTS)
        found += [Ratio(rival=rival.name, metric=name, setting=None, ratio=ratio) for name, ratio in pairs]
    return tuple(found)


def _paired(
    ours: Sequence[dict[str, Array]], theirs: Sequence[dict[str, Array]], names: Sequence[str]
) -> list[tuple[str, ConfidenceInterval]]:
    """The median over pairs of neighbouring runs: what drifts between pairs drops out of each ratio."""
    if not ours:
        return []
    rng = np.random.default_rng(_SEED)
    known = [name for name in names if name in ours[0] and name in theirs[0]]
    return [(name, median_estimate(_better(ours, theirs, name), rng)) for name in known]


def _better(ours: Sequence[dict[str, Array]], theirs: Sequence[dict[str, Array]], name: str) -> list[float]:
    ratios = [float(mine[name][0] / other[name][0]) for mine, other in zip(ours, theirs, strict=True)]
    return ratios if METRICS[name].is_better_high else [1 / ratio for ratio in ratios]
