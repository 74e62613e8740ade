"""Judges gates over a baseline on the output of `piston bench`, with the same test as its --require."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from piston.bench.baseline import Reference
from piston.bench.gate import BUNDLE_FIGURES, check_measured, judge, strictest
from piston.bench.reading import report_from
from piston.bench.report import Report
from piston.core.errors import MisuseError
from piston.core.gates import Gate, GateResult, Metric, parse_gate

ALPHA = 0.05  # chance that equal bundles fail, all gates over the baseline together


def judge_changes(
    gates: Sequence[Gate[Metric]], result: Mapping[str, Any], baseline: Reference
) -> dict[str, GateResult]:
    """The verdict on each gate over the baseline, by its text: the worst setting's. `result` is `piston bench`'s JSON.

    A gate that cannot be compared, for lack of runs or of equal settings, is not met; the message says why.
    """
    changes = [gate for gate in gates if gate.change_of == "baseline"]
    if not changes:
        return {}
    bounds = [parse_gate(gate.text.removeprefix("bench."), BUNDLE_FIGURES) for gate in changes]
    try:
        report = report_from(dict(result), Path("of this run"))
        earlier = dataclasses.replace(baseline, earlier=_earlier(report, baseline), contender=None)
        settings = [measured.setting for measured in report.systems[0].settings]
        earlier.check(report.options, settings)
        level = strictest(bounds, lambda bound: 1 if bound.metric.known.is_of_start else len(settings), ALPHA)
        for bound in bounds:
            for samples in (report.options, earlier.samples(report.options)):
                assert samples is not None  # only a baseline that is a bundle
                check_measured(bound, samples, settings, level)
    except MisuseError as problem:
        return {
            gate.text: GateResult(expression=gate.text, value=None, is_met=False, message=str(problem))
            for gate in changes
        }
    judged = judge(bounds, report, earlier, ALPHA)
    found = {}
    for gate, bound in zip(changes, bounds, strict=True):
        places = [item for item in judged if item.expression == bound.text]
        worst = max(places, key=lambda item: (not item.is_met, item.value))
        found[gate.text] = dataclasses.replace(worst, expression=gate.text)
    return found


def _earlier(report: Report, baseline: Reference) -> Report:
    """The baseline's report: from its file, or from this run where the bundle was measured in turns."""
    if baseline.earlier is not None:
        return baseline.earlier
    systems = [item for item in report.systems[1:] if item.kind == "piston" and item.path == baseline.path]
    return dataclasses.replace(report, systems=tuple(systems[-1:]))
