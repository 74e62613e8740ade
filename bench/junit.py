"""The gates as JUnit XML, for continuous integration: one test case for each bound at each setting."""

from xml.sax.saxutils import escape, quoteattr

from piston.bench.report import GateResult, Report
from piston.bench.table import where

# What XML 1.0 cannot hold, escaped or not.
_FORBIDDEN = {code: " " for code in range(0x20) if chr(code) not in "\t\n\r"} | {0xFFFE: " ", 0xFFFF: " "}


def junit_of(report: Report) -> str:
    """The document."""
    failures = sum(not gate.is_met for gate in report.gates)
    name = _attribute(f"piston bench {report.systems[0].name}")
    return "\n".join(
        [
            '<?xml version="1.0" encoding="utf-8"?>',
            f'<testsuite name={name} tests="{len(report.gates)}" failures="{failures}" errors="0" skipped="0">',
            *(_case(gate) for gate in report.gates),
            "</testsuite>",
            "",
        ]
    )


def _case(gate: GateResult) -> str:
    head = f"<testcase classname={_attribute('piston.bench')} name={_attribute(where(gate) + gate.expression)}"
    if gate.is_met:
        return f"  {head}><system-out>{_text(gate.message)}</system-out></testcase>"
    return f"  {head}><failure message={_attribute(gate.message)}/></testcase>"


def _attribute(text: str) -> str:
    return quoteattr(text.translate(_FORBIDDEN))


def _text(text: str) -> str:
    return escape(text.translate(_FORBIDDEN))
