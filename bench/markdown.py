"""The report as Markdown for a pull request's comment, and its gates as JUnit XML."""

from collections.abc import Iterator

from piston.bench.metrics import STAGE_METRICS
from piston.bench.report import Report
from piston.bench.table import beside, machine_lines, stage_rows
from piston.core.report import code
from piston.core.report.junit import Case
from piston.core.report.junit import junit_of as document_of
from piston.core.report.markdown import table, text


def markdown_of(report: Report) -> str:
    """Gates first, then medians, then the machine."""
    own = report.systems[0]
    lines = [f"### piston bench: {text(own.name)}", "", *_gates(report), *_systems(report)]
    lines += ["<details><summary>Fingerprint</summary>", "", *(f"{text(line)}  " for line in machine_lines(report))]
    return "\n".join([*lines, "", "</details>", ""])


def _gates(report: Report) -> Iterator[str]:
    if report.baseline is not None:
        yield f"Against the {report.baseline.kind} {text(report.baseline.path)}."
        yield ""
        if report.baseline.notes:
            yield from (f"- differs: {text(note)}" for note in report.baseline.notes)
            yield ""
    if report.gates:
        rows = [
            [
                "met" if gate.is_met else "**not met**",
                code(gate.expression),
                gate.place or "",
                gate.message,
                "" if gate.false_alarm is None else f"{gate.false_alarm:.2%}",
            ]
            for gate in report.gates
        ]
        yield from table(["", "gate", "at", "found", "false alarms"], rows)


def _systems(report: Report) -> Iterator[str]:
    for heads, rows in beside(report):
        yield from table(heads, rows)
    if report.systems[0].stages:
        yield from table(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))


def junit_of(report: Report) -> str:
    """A test case for each gate at each place, as JUnit XML."""
    cases = [
        Case(f"{'' if gate.place is None else f'{gate.place}: '}{gate.expression}", gate.is_met, gate.message)
        for gate in report.gates
    ]
    return document_of(f"piston bench {report.systems[0].name}", cases)
