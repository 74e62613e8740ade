"""The figures that gates of a benchmark may name, and the test of bounds over a baseline.

A bound over a baseline fails when the figure is above it AND the change is significant: shuffling runs between the two
sides rarely gives a change that large (a permutation test, with Holm's correction over all such gates of a run). Two
equal systems fail, all gates together, in at most `alpha` of runs. Each verdict also states its own probability, which
is lower where the bound is far outside the noise.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from piston.bench.baseline import Reference
from piston.bench.load.setting import LoadSetting
from piston.bench.metrics import (
    LOAD_METRICS,
    METRICS,
    STAGE_METRICS,
    Metric,
    names_of,
    of_stage,
    of_start,
    samples_of,
)
from piston.bench.report import Measured, MeasuredLoad, Options, Report, System
from piston.bench.workload import Setting
from piston.core import gates
from piston.core.errors import MisuseError
from piston.core.gates import GateResult
from piston.core.statistics import PERCENTS, Array, ConfidenceInterval, percentiles_of

SHUFFLES = 4000
ALPHA = 0.05
_SEED = 2
STAGES = ("export", "calibrate", "build")
Place = Setting | LoadSetting | str | None  # a setting, a stage's name, or the starts


class Change(NamedTuple):
    """The change of one figure: the ratio minus 1, and the changes between shuffled runs."""

    value: float
    p_value: float
    shuffled: Array  # changes between shuffled sides, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure(gates.Metric):
    """A quantile of a metric, of a bundle or of every stage of a verb."""

    known: Metric
    metric: str
    percent: int
    verb: str | None = None

    @property
    def quantile(self) -> str:
        """The key of a metric's estimates."""
        return f"p{self.percent}"


Gate = gates.Gate[Figure]


def _figures(metrics: Mapping[str, Metric], verb: str | None = None) -> dict[str, Figure]:
    """Every quantile of the metrics by name; a metric without quantile means its median."""
    found: dict[str, Figure] = {}
    for metric, known in metrics.items():
        name = metric if verb is None else f"{verb}.{metric}"
        for percent in PERCENTS:
            figure = Figure(
                name=f"{name}.p{percent}",
                described=f"{known.described}, p{percent}",
                unit=known.unit,
                is_better_high=known.is_better_high,
                percent_of=None if known.is_better_high else "baseline",
                known=known,
                metric=metric,
                percent=percent,
                verb=verb,
            )
            found.setdefault(name, figure)
            found[figure.name] = figure
    return found


BUNDLE_FIGURES = _figures(METRICS)
STAGE_FIGURES = {name: figure for verb in STAGES for name, figure in _figures(STAGE_METRICS, verb).items()}
LOAD_FIGURES = _figures(LOAD_METRICS)
FIGURES = BUNDLE_FIGURES | STAGE_FIGURES


def check_measured(gate: Gate, options: Options, settings: Sequence[Setting], level: float = ALPHA) -> None:
    """Refuse a bound on a figure that this run does not measure, or not often enough; raises MisuseError.

    `level` is the significance level at which it must be able to fail: see `strictest`.
    """
    figure = gate.metric
    if figure.verb is not None:
        raise MisuseError(f"--require {gate.text!r} is for stages; give a recipe instead of a bundle.")
    is_of_start = figure.known.is_of_start
    if is_of_start and not options.starts:
        raise MisuseError(f"--require {gate.text!r} needs new processes; raise --starts.")
    if is_of_start:
        check_samples(gate, options.starts, level, "--starts")
        return
    check_known(gate, settings)
    check_samples(gate, options.repeats, level)


def check_known(gate: Gate, settings: Sequence[Setting | LoadSetting]) -> None:
    """Refuse a bound on a figure that runs of none of these settings have; raises MisuseError."""
    metric, known = gate.metric.metric, set.union(*map(names_of, settings))
    if metric in known:
        return
    first = settings[0]
    longer = dataclasses.replace(first, gen_len=2) if isinstance(first, Setting) else None
    if longer is None or metric in names_of(longer):
        raise MisuseError(f"--require {gate.text!r} needs a second token; raise --gen-len.")
    assert isinstance(first, Setting)
    raise MisuseError(
        f"--require {gate.text!r} is not measured of {first.task}; its figures are "
        f"{', '.join(name for name, metric in METRICS.items() if name in known or metric.is_of_start)}."
    )


def check_stages(gate: Gate, num_runs: int, verbs: Sequence[str], level: float = ALPHA) -> None:
    """Refuse a bound on a figure that these recipes' stages do not have, as `check_measured` does."""
    figure = gate.metric
    if figure.verb is None:
        raise MisuseError(f"--require {gate.text!r} is for a bundle; for recipes write {STAGES[0]}.{figure.metric}.")
    if figure.verb not in verbs:
        raise MisuseError(f"--require {gate.text!r}: no recipe has this stage; the recipes have {', '.join(verbs)}.")
    check_samples(gate, num_runs, level)


def check_samples(gate: Gate, num_samples: int, level: float = ALPHA, option: str = "--repeats") -> None:
    """Refuse a bound over a baseline that so few runs cannot decide; raises MisuseError."""
    if gate.change_of is not None and num_samples < (fewest := fewest_samples(level)):
        raise MisuseError(
            f"--require {gate.text!r}: {num_samples} runs on each side cannot show a significant change (level "
            f"{level:.2g}, --alpha over all bounds over the baseline); raise {option} to at least {fewest}."
        )


def fewest_samples(level: float) -> int:
    """Runs of each side from which the most extreme assignment is certainly rarer than `level`."""
    return next(count for count in range(1, 100) if _least_p_value(count) <= level)


def _least_p_value(count: int) -> float:
    """The largest p-value that shuffling gives for the most extreme change of a median, with three standard errors.

    Runs below the median of the slower side may change places with runs above that of the faster without moving either.
    """
    free = (count - 1) // 2
    share = math.comb(2 * free, free) / math.comb(2 * count, count)
    return share + 3 * math.sqrt(share / SHUFFLES) + 1 / SHUFFLES


def strictest(wanted: Sequence[Gate], places: Callable[[Gate], int], alpha: float) -> float:
    """The level of Holm's first step: `alpha` over all bounds over a baseline, each at every place it has."""
    return max(alpha / max(sum(places(gate) for gate in wanted if gate.change_of is not None), 1), 5 / SHUFFLES)


def judge(wanted: Sequence[Gate], report: Report, reference: Reference | None, alpha: float) -> tuple[GateResult, ...]:
    """Judge every gate at every setting or stage that should have its figure; without the figure it is not met."""
    own = report.systems[0]
    results: list[GateResult] = []
    pending: list[tuple[Gate, Place, Change]] = []
    for gate in wanted:
        for place in _places(gate, own):
            if isinstance(place, LoadSetting) and (invalid := _at(own, place).invalid):  # type: ignore[union-attr]
                results.append(
                    GateResult(
                        expression=gate.text, value=None, is_met=False, message=f"invalid: {invalid}", place=place.name
                    )
                )
                continue
            there = None if gate.change_of is None or reference is None else reference.system(report)
            if not all(_has(gate, system, place) for system in (own, there) if system is not None):
                results.append(dataclasses.replace(gate.judge({}), place=_name(place)))
            elif gate.change_of is None:
                results.append(_absolute(gate, place, own))
            else:
                assert there is not None
                sides = _samples(gate, own, place), _samples(gate, there, place)
                pending.append((gate, place, change(*sides, gate.metric.percent)))
    levels = holm([found.p_value for _, _, found in pending], alpha)
    chances = [false_alarm(found, gate.bound, alpha / len(pending)) for gate, _, found in pending]
    verdicts = zip(pending, levels, chances, strict=True)
    return (*results, *(_relative(*item, level, chance) for item, level, chance in verdicts))


def change(here: Sequence[Array], there: Sequence[Array], percent: int, shuffles: int = SHUFFLES) -> Change:
    """Compare a quantile of two sides of runs by shuffling whole runs between them.

    Under the hypothesis that both sides are of one distribution every assignment is equally likely, so the share of
    shuffles (the actual assignment counted in) that give at least this ratio is an exact p-value, one-sided.
    """
    runs, count = [*here, *there], len(here)
    rng = np.random.default_rng(_SEED)
    order = np.argsort(rng.random((shuffles, len(runs))), axis=1)
    above, below = (percentiles_of(runs, side, [percent])[0] for side in (order[:, :count], order[:, count:]))
    actual = float(np.percentile(np.concatenate(here), percent) / np.percentile(np.concatenate(there), percent))
    shuffled = np.sort(above / below)
    num_as_large = int((shuffled >= actual * (1 - 1e-12)).sum())
    return Change(actual - 1, (1 + num_as_large) / (1 + shuffles), shuffled - 1)


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level that each p-value must not exceed (Holm 1979); 0 after the first that exceeds its own."""
    levels = [0.0] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        level = alpha / (len(p_values) - rank)
        if p_values[index] > level:
            break
        levels[index] = level
    return levels


def false_alarm(found: Change, bound: float, level: float) -> float:
    """Share of shuffles that would fail this gate: above the bound, and among the largest `level` of all.

    With several gates `level` is the strictest of Holm's: the one that decides while no other gate has failed.
    """
    largest = found.shuffled[::-1]
    num_rejected = max(int(level * (1 + len(largest))) - 1, 0)
    return float((largest[:num_rejected] > bound).sum() / len(largest))


def _places(gate: Gate, own: System) -> list[Place]:
    if gate.metric.verb is not None:
        return [stage.name for stage in own.stages if stage.verb == gate.metric.verb]
    if gate.metric.known.is_of_start:
        return [None]
    return [measured.setting for measured in own.measured if gate.metric.metric in names_of(measured.setting)]


def _has(gate: Gate, system: System, place: Place) -> bool:
    """Whether every run at a setting had the figure of a gate."""
    return not isinstance(place, Setting | LoadSetting) or gate.metric.metric in _at(system, place).metrics


def _at(system: System, place: Setting | LoadSetting) -> Measured | MeasuredLoad:
    return next(item for item in system.measured if item.setting == place)


def _samples(gate: Gate, system: System, place: Place) -> list[Array]:
    if isinstance(place, str):
        return [of_stage(run)[gate.metric.metric] for run in system.stage(place).runs]
    if place is None:
        return [of_start(start)[gate.metric.metric] for start in system.starts]
    return [sample[gate.metric.metric] for sample in samples_of(_at(system, place))]


def _metrics(system: System, place: Place) -> dict[str, dict[str, ConfidenceInterval]]:
    if isinstance(place, str):
        return system.stage(place).metrics
    return system.metrics if place is None else _at(system, place).metrics


def _absolute(gate: Gate, place: Place, own: System) -> GateResult:
    value = _metrics(own, place)[gate.metric.metric][gate.metric.quantile].value
    return dataclasses.replace(gate.judge({gate.quantity: value}), place=_name(place))


def _relative(gate: Gate, place: Place, found: Change, level: float, alarm: float) -> GateResult:
    is_inside = gate.holds(found.value)
    is_met = is_inside or found.p_value > level
    chance = f"p = {found.p_value:.2g}"
    verdict = "" if is_inside else f", {chance}"
    if is_met and not is_inside:
        verdict = f", which is not significant at this noise level ({chance}); raise --repeats to decide"
    return GateResult(
        expression=gate.text,
        value=found.value,
        is_met=is_met,
        message=f"{gate.metric.described} changed by {found.value:+.1%}{verdict}",
        place=_name(place),
        p_value=found.p_value,
        false_alarm=alarm,
    )


def _name(place: Place) -> str | None:
    return place.name if isinstance(place, Setting | LoadSetting) else place
