"""How cost grows: prefill per token and decode step by context, load by size; and whether as expected.

Prefill per token should be flat, a decode step linear in the tokens before it, loading linear in the bundle's bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from piston.bench.report import Measured, Report, System

FLAT_FROM = 512  # tokens: shorter prompts pay what every call costs
FLAT_WITHIN = 1.25  # the most expensive token over the cheapest
LINEAR_WITHIN = 0.10  # the largest distance from a straight line, as a share of the value


@dataclass(frozen=True, slots=True)
class Line:
    """A least-squares line: value at 0, rise for each unit, and the largest relative distance of a point."""

    start: float
    slope: float
    worst: float

    @property
    def is_linear(self) -> bool:
        """Whether every point lies close to it."""
        return self.worst <= LINEAR_WITHIN


def line_through(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """Fit a line with relative errors of equal weight, as times scatter; `ys` are positive, at least two points."""
    x, y = np.asarray(xs, np.float64), np.asarray(ys, np.float64)
    slope, start = np.polyfit(x, y, 1, w=1 / y)
    return Line(float(start), float(slope), float(np.abs((start + slope * x) / y - 1).max()))


def contexts(system: System) -> list[int]:
    """Prompt lengths of one row of a language model, ascending."""
    return sorted(item.setting.prompt_len for item in system.settings if _is_one_row(item))


def prefill_ms(system: System) -> list[float]:
    """Milliseconds for each token of the prompt, by context."""
    return [1e3 / _median(system, length, "prefill") for length in contexts(system)]


def decode_ms(system: System) -> list[float]:
    """Milliseconds of a decode step, by context."""
    return [1e3 * _median(system, length, "tpot") for length in contexts(system)]


def load_points(report: Report) -> list[tuple[str, float, float]]:
    """Name, megabytes and milliseconds to load of every system whose starts and size are known, by size."""
    found = [
        (system.name, system.size_bytes / 1e6, 1e3 * system.metrics["load"]["p50"].value)
        for system in report.systems
        if system.size_bytes is not None and system.metrics
    ]
    return sorted(found, key=lambda point: point[1])


def is_growth(report: Report) -> bool:
    """Whether enough contexts were measured."""
    return bool(report.systems[0].settings) and len(contexts(report.systems[0])) > 2  # noqa: PLR2004 - a line has ends


def growth_rows(report: Report) -> list[list[str]]:
    """Heads, then two rows for each system: prefill and decode by context."""
    heads = ["tokens of context", *(f"{length:,}" for length in contexts(report.systems[0])), "size, MB", "load, ms"]
    loads = {name: (size, load) for name, size, load in load_points(report)}
    rows = [heads]
    for system in report.systems:
        ends = [f"{value:,.0f}" for value in loads[system.name]] if system.name in loads else ["-", "-"]
        prefill, decode = prefill_ms(system), decode_ms(system)
        rows.append([f"{system.name}: prefill, ms a token", *(f"{value:.3f}" for value in prefill), *ends])
        rows.append([f"{system.name}: decode, ms a token", *(f"{value:.2f}" for value in decode), "", ""])
    return rows


def growth_verdicts(report: Report) -> list[str]:
    """One sentence for each system and one for loading, each with a verdict and its numbers."""
    found = [sentence for system in report.systems for sentence in (_prefill_verdict(system), _decode_verdict(system))]
    return [*found, *_load_verdict(report)]


def _prefill_verdict(system: System) -> str:
    pairs = [pair for pair in zip(contexts(system), prefill_ms(system), strict=True) if pair[0] >= FLAT_FROM]
    if len(pairs) < 2:  # noqa: PLR2004 - nothing to compare
        return f"{system.name}: prefill was not measured at two lengths of {FLAT_FROM} tokens or more."
    rise = max(ms for _, ms in pairs) / min(ms for _, ms in pairs)
    (first, first_ms), (last, last_ms) = pairs[0], pairs[-1]
    verdict = "is flat" if rise <= FLAT_WITHIN else "is not flat"
    return (
        f"{system.name}: prefill per token {verdict}: {first_ms:.3g} ms at {first:,} tokens, {last_ms:.3g} at "
        f"{last:,}; the most expensive is {rise:.2f} times the cheapest (flat: {FLAT_WITHIN:g})."
    )


def _decode_verdict(system: System) -> str:
    line = line_through(contexts(system), decode_ms(system))
    verdict = "is linear in context" if line.is_linear else "is not linear in context"
    return (
        f"{system.name}: a decode step {verdict}: {line.start:.3g} ms and {1e3 * line.slope:+.3g} ms for each 1,000 "
        f"tokens, off by {line.worst:.0%} at most (linear: {LINEAR_WITHIN:.0%})."
    )


def _load_verdict(report: Report) -> list[str]:
    points = load_points(report)
    if len({size for _, size, _ in points}) < 3:  # noqa: PLR2004 - two points are always on a line
        return []
    line = line_through([size for _, size, _ in points], [load for _, _, load in points])
    verdict = "is linear in size" if line.is_linear else "is not linear in size"
    sentence = (
        f"Loading {verdict}: {line.start:.3g} ms and {100 * line.slope:+.3g} ms for each 100 MB over "
        f"{points[0][1]:,.0f} to {points[-1][1]:,.0f} MB, off by {line.worst:.0%} at most "
        f"(linear: {LINEAR_WITHIN:.0%})."
    )
    return [sentence]


def _is_one_row(measured: Measured) -> bool:
    return measured.setting.num_slots == 1 and "prefill" in measured.metrics


def _median(system: System, prompt_len: int, metric: str) -> float:
    measured = next(item for item in system.settings if item.setting.prompt_len == prompt_len and _is_one_row(item))
    return measured.metrics[metric]["p50"].value
