"""What scripts/bench_rivals.py measured as Markdown: every system, the goals with ratios and intervals, growth, stages.

Of several bundles or rivals the best of each side is taken. Why a goal is missed is read from docs/bench.md.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.bench.metrics import METRICS, STAGE_METRICS
from piston.bench.ratios import ratios_of
from piston.bench.reading import report_from
from piston.bench.report import Ratio, Report, System
from piston.bench.scaling import growth_rows, growth_verdicts
from piston.bench.table import machine_lines, ratio_text, stage_rows
from piston.core.statistics import ConfidenceInterval
from piston.core.units import shown

LIMITS = Path(__file__).parents[1] / "docs/bench.md"
ALL, INT8, INT4 = ("w8a8", "w8", "w4"), ("w8a8", "w8"), ("w4",)  # schemes of bundles
RIVALS = (
    *("genai-int8", "genai-int4", "openvino-int8", "ct2-int8"),
    *("llama.cpp-Q4_0", "llama.cpp-Q4_1", "llama.cpp-Q8_0", "transformers"),
)
SPECULATION_GOAL = 1.7


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: whose figure against whose; with `each` all of `theirs` have a row."""

    row: str
    stage: str
    metric: str
    schemes: tuple[str, ...]
    theirs: tuple[str, ...]
    at_least: float
    each: bool = False


GOALS = (
    Goal("int8 decode", "prompt", "decode", INT8, ("openvino-int8",), 2.0),
    Goal("int8 decode", "prompt", "decode", INT8, ("genai-int8",), 1.3),
    Goal("int4 decode", "prompt", "decode", INT4, ("genai-int4", "llama.cpp-Q4_0", "llama.cpp-Q4_1"), 1.2),
    Goal("prefill 512", "prompt", "prefill", INT8, ("openvino-int8",), 1.0),
    Goal("prefill 512", "prompt", "prefill", INT8, ("genai-int8", "genai-int4"), 8.0, each=True),
    Goal("decode after 2,000 tokens", "context", "decode", ALL, RIVALS, 1.3),
    Goal("batch 4 decode", "batch", "decode", ALL, RIVALS, 1.2),
    Goal("new process to first token", "starts", "first_token", ALL, RIVALS, 1.5),
    Goal("peak memory", "starts", "peak", ALL, RIVALS, 1.0),
)
# The columns of the table of systems: a stage and its figure.
COLUMNS = (
    ("prefill 512, tokens/s", "prompt", "prefill"),
    ("decode after 512, tokens/s", "prompt", "decode"),
    ("decode after 2,000, tokens/s", "context", "decode"),
    ("batch 4 decode, tokens/s", "batch", "decode"),
    ("new process to first token, ms", "starts", "first_token"),
    ("peak memory, MB", "starts", "peak"),
)
_SCALES = {"s": 1e3, "bytes": 1e-6, "tokens/s": 1.0}


def table_of(out: Path) -> str:
    """Everything that OUT holds."""
    reports = {path.stem: _report(path) for path in sorted(out.glob("*.json")) if "systems" in _json(path)}
    schemes: Mapping[str, str] = _json(out / "bundles.json") if (out / "bundles.json").exists() else {}
    compared = [*system_lines(reports), "", *goal_lines(reports, schemes, _speculation(out))]
    lines = compared if any(column[1] in reports for column in COLUMNS) else []
    if "growth" in reports:
        lines += ["", *growth_lines(reports["growth"])]
    if "making" in reports:
        lines += ["", *making_lines(reports["making"])]
    for name, report in reports.items():
        lines += ["", f"{name}, {report.date}: {'; '.join(machine_lines(report))}"]
    return "\n".join(lines).lstrip("\n") + "\n"


def system_lines(reports: Mapping[str, Report]) -> Iterator[str]:
    """A row for each system that was compared, medians; what was not measured is a dash."""
    columns = [column for column in COLUMNS if column[1] in reports]
    yield f"| | {' | '.join(head for head, _, _ in columns)} |"
    yield f"|{'---|' * (len(columns) + 1)}"
    names = dict.fromkeys(system.name for _, stage, _ in columns for system in reports[stage].systems)
    for name in names:
        cells = []
        for _, stage, metric in columns:
            found = [system for system in reports[stage].systems if system.name == name]
            value = _SCALES[METRICS[metric].unit] * median_of(found[0], metric) if found else None
            cells.append("-" if value is None else f"{value:,.1f}" if metric == "decode" else f"{value:,.0f}")
        yield f"| {name} | {' | '.join(cells)} |"


def goal_lines(
    reports: Mapping[str, Report], schemes: Mapping[str, str], speculation: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The table of goals, and below it the limit of each that is missed."""
    rows = [row for goal in GOALS if goal.stage in reports for row in rows_of(goal, reports[goal.stage], schemes)]
    rows += [row_of_speculation(task) for task in speculation]
    yield "| | Piston | rival | ratio | goal | |"
    yield "|---|---|---|---|---|---|"
    yield from (f"| {' | '.join(row)} |" for row in rows)
    missed = dict.fromkeys(row[0] for row in rows if row[-1] != "met")
    why = limits_of(LIMITS.read_text(encoding="utf-8"))
    if missed:
        yield ""
        yield "Missed, and why (docs/bench.md):"
        yield ""
        yield from (f"- **{row}.** {why.get(row, 'no limit is written down yet.')}" for row in missed)


def rows_of(goal: Goal, report: Report, schemes: Mapping[str, str]) -> Iterator[list[str]]:
    """The cells of one goal; a row for each rival with `each`. A bundle's scheme is its name's where none is known."""
    # An INT8 cache is written after the scheme: w8+kv8.
    weights = {item.name: schemes.get(item.name, item.name).partition("+")[0] for item in report.systems}
    ours = best([item for item in report.systems if weights[item.name] in goal.schemes], goal.metric)
    theirs = [system for system in report.systems if system.name in goal.theirs]
    for rival in theirs if goal.each else [best(theirs, goal.metric)]:
        if rival is not None and ours is not None:
            ratio = next(item for item in ratios_of([ours, rival]) if item.metric == goal.metric)
            yield row_of(goal, ours, rival, ratio)


def row_of(goal: Goal, ours: System, rival: System, ratio: Ratio) -> list[str]:
    """The cells of one line."""
    unit = METRICS[goal.metric].unit
    return [
        goal.row,
        f"{ours.name} {shown(median_of(ours, goal.metric), unit)}",
        f"{rival.name} {shown(median_of(rival, goal.metric), unit)}",
        ratio_text(ratio.ratio),
        f"{goal.at_least:.1f}x",
        _mark(ratio.ratio.value >= goal.at_least),
    ]


def row_of_speculation(task: Mapping[str, Any]) -> list[str]:
    """The cells of one set of prompts of scripts/bench_speculation.py."""
    is_met = task["ratio"] >= SPECULATION_GOAL and task["different"] == 0
    differ = "" if task["different"] == 0 else f" ({task['different']} answers differ)"
    return [
        f"prompt lookup, {task['task']}",
        f"{task['bundle']} {task['guessed_tokens_per_s']:.1f}/s",
        f"own greedy decode {task['plain_tokens_per_s']:.1f}/s",
        ratio_text(ConfidenceInterval(task["ratio"], task["low"], task["high"])) + differ,
        f"{SPECULATION_GOAL:.1f}x",
        _mark(is_met),
    ]


def best(systems: Sequence[System], metric: str) -> System | None:
    """The system with the best median."""
    sign = 1 if METRICS[metric].is_better_high else -1
    return max(systems, key=lambda system: sign * median_of(system, metric), default=None)


def median_of(system: System, metric: str) -> float:
    """The median of a figure, of starts or of the stage's one setting."""
    metrics = system.metrics if METRICS[metric].is_of_start else system.settings[0].metrics
    return metrics[metric]["p50"].value


def limits_of(text: str) -> dict[str, str]:
    """The limits written down in docs/bench.md: list items that begin with the row in bold."""
    found = re.findall(r"^- \*\*(.+?)\.\*\* (.+(?:\n  .+)*)", text, re.MULTILINE)
    return {row: " ".join(why.split()) for row, why in found}


def growth_lines(report: Report) -> Iterator[str]:
    """How cost grows with context and size, and whether as it should."""
    heads, *rows = growth_rows(report)
    yield from _markdown(heads, rows)
    yield ""
    yield from (f"- {verdict}" for verdict in growth_verdicts(report))


def making_lines(report: Report) -> Iterator[str]:
    """What export, calibration and builds cost."""
    return _markdown(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))


def _markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)


def _mark(is_met: bool) -> str:  # noqa: FBT001 - what there is to say
    return "met" if is_met else "**missed**"


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _report(path: Path) -> Report:
    return report_from(_json(path), path)


def _speculation(out: Path) -> Sequence[Mapping[str, Any]]:
    path = out / "speculation.json"
    rows: Sequence[Mapping[str, Any]] = _json(path)["tasks"] if path.exists() else []
    return rows
