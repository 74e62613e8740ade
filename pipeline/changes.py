"""Gates over a baseline: what `piston bench` printed, judged by the test of its --fail-on."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piston.bench.baseline import Reference
from piston.bench.gate import Gate as BenchGate
from piston.bench.gate import judge, strictest
from piston.bench.gate import parse_gate as parse_bench_gate
from piston.bench.reading import report_from
from piston.bench.report import Report
from piston.core.errors import MisuseError
from piston.pipeline.gates import Gate, GateResult

ALPHA = 0.05  # chance that equal bundles fail, all gates over the baseline together


def judge_changes(gates: Sequence[Gate], result: Mapping[str, Any], baseline: Reference) -> dict[str, GateResult]:
    """The verdict on each gate over the baseline by its text: its worst setting's; `result` is of `piston bench`.

    What cannot be compared, for want of runs or of the same settings, does not meet its gate: the message says why.
    """
    changes = [gate for gate in gates if gate.is_change]
    if not changes:
        return {}
    bounds = [_bench_gate(gate) for gate in changes]
    try:
        report = report_from(dict(result), Path("of this run"))
        earlier = dataclasses.replace(baseline, earlier=_earlier(report, baseline), contender=None)
        settings = [measured.setting for measured in report.systems[0].settings]
        earlier.check(report.options, settings)
        level = strictest(bounds, lambda bound: 1 if bound.known.is_of_start else len(settings), ALPHA)
        for bound in bounds:
            for samples in (report.options, earlier.samples(report.options)):
                assert samples is not None  # of a bundle only, which `earlier` is not
                bound.check_measured(samples, settings, level)
    except MisuseError as problem:
        return {gate.text: _result(gate, None, str(problem), is_met=False) for gate in changes}
    judged = judge(bounds, report, earlier, ALPHA)
    found = {}
    for gate, bound in zip(changes, bounds, strict=True):
        places = [item for item in judged if item.expression == bound.text]
        worst = max(places, key=lambda item: (not item.is_met, item.value))
        where = "" if worst.setting is None else f"{worst.setting.name}: "
        message = worst.message.removeprefix(f"{bound.text}: ")
        found[gate.text] = _result(gate, worst.value, f"{where}{message}", is_met=worst.is_met)
    return found


def _bench_gate(gate: Gate) -> BenchGate:
    """As --fail-on writes it: what fails."""
    metric, quantile = gate.name.split(".")[1:3]
    return parse_bench_gate(f"{metric}.{quantile}>{gate.bound * 100:.12g}%")


def _earlier(report: Report, baseline: Reference) -> Report:
    """The file's report, or this run's of the bundle that was measured in turns with the new one."""
    if baseline.earlier is not None:
        return baseline.earlier
    systems = [item for item in report.systems[1:] if item.kind == "piston" and item.path == baseline.path]
    return dataclasses.replace(report, systems=tuple(systems[-1:]))


def _result(gate: Gate, value: float | None, message: str, *, is_met: bool) -> GateResult:
    return GateResult(expression=gate.text, value=value, is_met=is_met, message=message)
