"""Bounds that fail a run, such as `tpot.p50>5%` or `calibrate.peak>5%`: text in, verdicts on reports out.

A relative bound fails when the figure is above it AND shuffling runs between the two sides rarely gives so large a
change (a permutation test, Holm's correction over all relative gates of a run). So two equal runs fail, all gates
together, in at most `alpha` of cases; each verdict also states its own chance, which is lower where the bound is far
outside the noise.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from piston.bench.baseline import Reference
from piston.bench.metrics import METRICS, STAGE_METRICS, Metric, of_run, of_stage, of_start
from piston.bench.report import GateResult, Options, Report, System
from piston.bench.table import figure
from piston.bench.workload import Setting
from piston.core.errors import MisuseError
from piston.core.statistics import PERCENTS, Array, Estimate

GATED = tuple(name for name, metric in METRICS.items() if not metric.is_better_high)
SHUFFLES = 4000
ALPHA = 0.05
_SEED = 2
_UNITS = {"s": {"s": 1.0, "ms": 1e-3, "us": 1e-6}, "bytes": {"MB": 1e6, "GB": 1e9, "MiB": 2.0**20, "GiB": 2.0**30}}
STAGES = ("export", "calibrate", "build")
Place = Setting | str | None  # a setting, a stage's name, or the starts
_EXPRESSION = re.compile(
    r"\s*(?:(export|calibrate|build)\.)?(\w+)(?:\.p(\d+))?\s*>\s*(\d+(?:\.\d*)?|\.\d+)\s*(%|[A-Za-z]+)\s*"
)


class Change(NamedTuple):
    """How one figure moved: the ratio less 1, and what shuffled runs say of it."""

    value: float
    p_value: float
    shuffled: Array  # changes between shuffled sides, sorted


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One bound; the condition states what fails."""

    text: str
    metric: str
    percent: int  # of the quantile
    bound: float  # of a change (0.05) where relative, else seconds or bytes
    is_relative: bool
    verb: str | None = None  # of every stage of this verb; None: of a bundle

    @property
    def known(self) -> Metric:
        """What the figure is."""
        return METRICS[self.metric] if self.verb is None else STAGE_METRICS[self.metric]

    @property
    def quantile(self) -> str:
        """The key of a metric's estimates."""
        return f"p{self.percent}"

    @property
    def described(self) -> str:
        """The figure in words."""
        return f"{self.known.described}, {self.quantile}"

    def check_measured(self, options: Options, settings: Sequence[Setting], level: float = ALPHA) -> None:
        """Refuse a bound on what this run will not measure, or too seldom to decide; raises MisuseError.

        `level` is the chance of a false alarm at which it must be able to fail: see `strictest`.
        """
        if self.verb is not None:
            raise MisuseError(f"--fail-on {self.text!r} bounds a stage; give a recipe instead of a bundle.")
        if METRICS[self.metric].is_of_start and not options.starts:
            raise MisuseError(f"--fail-on {self.text!r} needs new processes; raise --starts.")
        if self.metric in {"tpot", "itl"} and all(setting.gen_len == 1 for setting in settings):
            raise MisuseError(f"--fail-on {self.text!r} needs a second token; raise --gen-len.")
        is_of_start = METRICS[self.metric].is_of_start
        self._check_samples(
            options.starts if is_of_start else options.repeats, "--starts" if is_of_start else "--repeats", level
        )

    def check_stages(self, num_runs: int, verbs: Sequence[str], level: float = ALPHA) -> None:
        """Refuse a bound on what these recipes' stages will not give, as `check_measured` does."""
        if self.verb is None:
            raise MisuseError(f"--fail-on {self.text!r} bounds a bundle; of recipes write {STAGES[0]}.{self.metric}.")
        if self.verb not in verbs:
            raise MisuseError(f"--fail-on {self.text!r}: no recipe has the stage; they have {', '.join(verbs)}.")
        self._check_samples(num_runs, "--repeats", level)

    def _check_samples(self, num_samples: int, option: str, level: float) -> None:
        if self.is_relative and num_samples < (fewest := fewest_samples(level)):
            raise MisuseError(
                f"--fail-on {self.text!r}: {num_samples} runs on each side cannot tell a change from chance (level "
                f"{level:.2g}, --alpha over all relative bounds); raise {option} to at least {fewest}."
            )


def parse_gate(text: str) -> Gate:
    """Read `METRIC.pNN > NUMBER UNIT`; without a quantile the median is meant.

    Raises:
        MisuseError: it is no such expression, or names a figure or unit that is not there.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None or match[2] not in (GATED if match[1] is None else STAGE_METRICS):
        raise MisuseError(
            f"Cannot read --fail-on {text!r}: write a condition that fails the run, such as 'tpot.p50>5%', "
            f"'ttft.p95>200ms' or 'peak>400MB'; the figures are {', '.join(GATED)}, and of a recipe's stages "
            f"{', '.join(f'{STAGES[0]}.{name}' for name in STAGE_METRICS)}, likewise {' and '.join(STAGES[1:])}."
        )
    verb, metric, percent, number, unit = match[1], match[2], int(match[3] or 50), float(match[4]), match[5]
    known = METRICS[metric] if verb is None else STAGE_METRICS[metric]
    if percent not in PERCENTS:
        raise MisuseError(f"--fail-on {text!r}: write one of {', '.join(f'.p{known}' for known in PERCENTS)}.")
    units = {"%": 0.01} | _UNITS[known.unit]
    if unit not in units:
        raise MisuseError(f"--fail-on {text!r}: {known.described} is bounded in {', '.join(units)}.")
    bound = number * units[unit]
    if not math.isfinite(bound):
        raise MisuseError(f"--fail-on {text!r}: {match[4]} is beyond every number; write a smaller one.")
    return Gate(text=text, metric=metric, percent=percent, bound=bound, is_relative=unit == "%", verb=verb)


def fewest_samples(level: float) -> int:
    """Runs of each side with which the most extreme of all their assignments is surely found rarer than `level`."""
    return next(count for count in range(1, 100) if _least_p_value(count) <= level)


def _least_p_value(count: int) -> float:
    """What shuffling gives at worst for the most extreme change of a median, with three standard errors.

    Runs below the median of the slower side may change places with runs above that of the faster without moving either.
    """
    free = (count - 1) // 2
    share = math.comb(2 * free, free) / math.comb(2 * count, count)
    return share + 3 * math.sqrt(share / SHUFFLES) + 1 / SHUFFLES


def strictest(gates: Sequence[Gate], places: Callable[[Gate], int], alpha: float) -> float:
    """The level of Holm's first step: `alpha` over all relative bounds, each at every place it has."""
    return max(alpha / max(sum(places(gate) for gate in gates if gate.is_relative), 1), 5 / SHUFFLES)


def judge(gates: Sequence[Gate], report: Report, reference: Reference | None, alpha: float) -> tuple[GateResult, ...]:
    """Every gate at every setting or stage that has its figure."""
    own = report.systems[0]
    results: list[GateResult] = []
    pending: list[tuple[Gate, Place, Change]] = []
    for gate in gates:
        for place in _places(gate, own):
            if not gate.is_relative:
                results.append(_absolute(gate, place, own))
                continue
            assert reference is not None
            there = _samples(gate, reference.system(report), place)
            pending.append((gate, place, change(_samples(gate, own, place), there, gate.percent)))
    levels = holm([found.p_value for _, _, found in pending], alpha)
    chances = [false_alarm(found, gate.bound, alpha / len(pending)) for gate, _, found in pending]
    verdicts = zip(pending, levels, chances, strict=True)
    return (*results, *(_relative(*item, level, chance) for item, level, chance in verdicts))


def change(here: Sequence[Array], there: Sequence[Array], percent: int, shuffles: int = SHUFFLES) -> Change:
    """Compare a quantile of two sides of runs by shuffling whole runs between them.

    Under the hypothesis that both sides are of one distribution every assignment is equally likely, so the share of
    shuffles (the actual assignment counted in) that give at least this ratio is an exact p-value, one-sided.
    """
    runs, count = np.stack([*here, *there]), len(here)  # (runs, values)
    rng = np.random.default_rng(_SEED)
    order = np.argsort(rng.random((shuffles, len(runs))), axis=1)
    above = np.percentile(runs[order[:, :count]].reshape(shuffles, -1), percent, axis=1)
    below = np.percentile(runs[order[:, count:]].reshape(shuffles, -1), percent, axis=1)
    actual = float(np.percentile(runs[:count], percent) / np.percentile(runs[count:], percent))
    shuffled = np.sort(above / below)
    num_as_large = int((shuffled >= actual * (1 - 1e-12)).sum())
    return Change(actual - 1, (1 + num_as_large) / (1 + shuffles), shuffled - 1)


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level each p-value must not exceed to be rejected (Holm 1979); 0 where an earlier one was not."""
    levels = [0.0] * len(p_values)
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        level = alpha / (len(p_values) - rank)
        if p_values[index] > level:
            break
        levels[index] = level
    return levels


def false_alarm(found: Change, bound: float, level: float) -> float:
    """Share of shuffles this gate would fail: above the bound, and among the largest `level` of all.

    With several gates `level` is the strictest of Holm's: the one that decides while no other gate has failed.
    """
    largest = found.shuffled[::-1]
    num_rejected = max(int(level * (1 + len(largest))) - 1, 0)
    return float((largest[:num_rejected] > bound).sum() / len(largest))


def _places(gate: Gate, own: System) -> list[Place]:
    if gate.verb is not None:
        return [stage.name for stage in own.stages if stage.verb == gate.verb]
    if METRICS[gate.metric].is_of_start:
        return [None]
    return [measured.setting for measured in own.settings if gate.metric in measured.metrics]


def _samples(gate: Gate, system: System, place: Place) -> list[Array]:
    if isinstance(place, str):
        return [of_stage(run)[gate.metric] for run in system.stage(place).runs]
    if place is None:
        return [of_start(start)[gate.metric] for start in system.starts]
    measured = next(item for item in system.settings if item.setting == place)
    return [of_run(run, place)[gate.metric] for run in measured.runs]


def _metrics(system: System, place: Place) -> dict[str, dict[str, Estimate]]:
    if isinstance(place, str):
        return system.stage(place).metrics
    return system.metrics if place is None else next(m for m in system.settings if m.setting == place).metrics


def _absolute(gate: Gate, place: Place, own: System) -> GateResult:
    value = _metrics(own, place)[gate.metric][gate.quantile].value
    message = f"{gate.text}: {gate.described} is {figure(value, gate.known.unit)}"
    return _result(gate, place, value, is_met=value <= gate.bound, message=message)


def _relative(gate: Gate, place: Place, found: Change, level: float, alarm: float) -> GateResult:
    is_met = not (found.value > gate.bound and found.p_value <= level)
    chance = f"p = {found.p_value:.2g}"
    verdict = "" if is_met and found.value <= gate.bound else f", {chance}"
    if is_met and found.value > gate.bound:
        verdict = f", but equal runs that scatter so differ as much ({chance}); raise --repeats to decide"
    message = f"{gate.text}: {gate.described} changed by {found.value:+.1%}{verdict}"
    result = _result(gate, place, found.value, is_met=is_met, message=message)
    return dataclasses.replace(result, p_value=found.p_value, false_alarm=alarm)


def _result(gate: Gate, place: Place, value: float, *, is_met: bool, message: str) -> GateResult:
    return GateResult(
        expression=gate.text,
        setting=None if isinstance(place, str) else place,
        stage=place if isinstance(place, str) else None,
        value=value,
        p_value=None,
        false_alarm=None,
        is_met=is_met,
        message=message,
    )
