"""The report as Markdown, for a comment on a pull request."""

from collections.abc import Iterator, Sequence

from piston.bench.metrics import METRICS, STAGE_METRICS
from piston.bench.report import Report
from piston.bench.table import figure, machine_lines, ratio_of, shown, stage_rows, where

_METRICS = ("ttft", "tpot", "prefill", "decode")
_START_METRICS = ("first_token", "load", "peak")


def markdown_of(report: Report) -> str:
    """Gates first, then medians, then the machine."""
    own = report.systems[0]
    lines = [f"### piston bench: {_cell(own.name)}", "", *_gates(report), *_systems(report)]
    lines += ["<details><summary>Fingerprint</summary>", "", *(f"{_cell(line)}  " for line in machine_lines(report))]
    return "\n".join([*lines, "", "</details>", ""])


def _gates(report: Report) -> Iterator[str]:
    if report.baseline is not None:
        yield f"Against the {report.baseline.kind} {_cell(report.baseline.path)}."
        yield ""
        if report.baseline.notes:
            yield from (f"- differs: {_cell(note)}" for note in report.baseline.notes)
            yield ""
    if report.gates:
        rows = [
            ["met" if gate.is_met else "**not met**", where(gate).rstrip(": "), gate.message, _chance(gate.false_alarm)]
            for gate in report.gates
        ]
        yield from _table(["gate", "at", "found", "false alarms"], rows)


def _systems(report: Report) -> Iterator[str]:
    for index, measured in enumerate(report.systems[0].settings):
        names = [name for name in _METRICS if name in measured.metrics]
        rows = []
        for system in report.systems:
            metrics = system.settings[index].metrics
            ratios = [ratio_of(report.ratios, system, name, measured) for name in names]
            cells = [shown(name, metrics[name]["p50"]) + ratio for name, ratio in zip(names, ratios, strict=True)]
            rows.append([system.name, *cells])
        yield from _table([measured.setting.name, *(METRICS[name].described for name in names)], rows)
    if report.systems[0].metrics:
        rows = [
            [
                system.name,
                *(
                    figure(system.metrics[name]["p50"].value, METRICS[name].unit)
                    + ratio_of(report.ratios, system, name, None)
                    for name in _START_METRICS
                ),
            ]
            for system in report.systems
        ]
        yield from _table(["new processes", *(METRICS[name].described for name in _START_METRICS)], rows)
    if report.systems[0].stages:
        yield from _table(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield _row(heads)
    yield _row(["---"] * len(heads))
    yield from (_row(row) for row in rows)
    yield ""


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(text: str) -> str:
    """Text that neither ends the cell nor is read as markup of HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")


def _chance(value: float | None) -> str:
    return "" if value is None else f"{value:.2%}"
