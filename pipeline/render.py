"""A report as text for people, as Markdown for a pull request, and as JUnit for what counts tests."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from piston.core.bundle.manifest import Manifest
from piston.core.bundle.sbom import sbom_of
from piston.core.errors import Error
from piston.core.outputs import write_output
from piston.pipeline.gates import shown_bytes, shown_value
from piston.pipeline.page import page_of
from piston.pipeline.report import FILES, SBOM, EngineReport, Report, StageReport

_UNPRINTABLE = {code: " " for code in range(32) if chr(code) not in "\t\n\r"}  # what XML 1.0 cannot hold


def write_reports(directory: Path, report: Report) -> None:
    """Write all four forms; raises Error where the directory cannot be written."""
    texts = (
        json.dumps(report.to_json(), indent=1, ensure_ascii=False) + "\n",
        junit_of(report),
        "\n".join(markdown_of(report)) + "\n",
        page_of(report),
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Error(f"Cannot write the report to {directory}: {problem.strerror}.") from problem
    for name, text in zip(FILES, texts, strict=True):
        write_output(directory / name, text)


def write_sbom(directory: Path, report: Report, model_license: str | None) -> None:
    """Write the bill of materials of the bundle that was published; raises as write_reports does."""
    bundle = Path(report.bundle)
    document = sbom_of(bundle, Manifest.read(bundle), model_license)
    write_output(directory / SBOM, json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def lines_of(report: Report) -> Iterator[str]:
    """For a terminal."""
    for stage in report.stages:
        yield f"{stage.name:<10} {took(stage)}"
    for engine in report.engines:
        yield f"engine     {engine.target}: {precision_of(engine)}"
    for gate in report.gates:
        yield f"gate       {'met    ' if gate.is_met else 'NOT MET'} {gate.expression}: {gate.message}"
    if report.lock is not None:
        yield f"lock       {report.lock.equality}: {report.lock.path}"
        for change in report.lock.changed:
            yield f"           {change}"
    size = shown_value("bundle.size", report.values["bundle.size"])
    yield f"{report.bundle}: {'published' if report.is_published else 'NOT published'}, {report.scheme}, {size}"


def markdown_of(report: Report) -> Iterator[str]:
    """For a pull request's comment or a job's summary."""
    yield f"## {'✅' if report.is_met else '❌'} {_cell(report.model)}, {report.scheme}"
    yield ""
    if report.gates:
        yield from _table(
            ("gate", "", "measured"),
            [(f"`{gate.expression}`", "✅" if gate.is_met else "❌", _cell(gate.message)) for gate in report.gates],
        )
    if report.lock is not None:
        yield f"Rebuilt against `{Path(report.lock.path).name}`: **{report.lock.equality}**"
        yield ""
    for parting in report.partings:
        yield f"- parts: {_cell(parting)}"
    yield from _table(
        ("stage", "time", "memory", "written"),
        [
            (stage.name, _seconds(stage), f"{stage.peak_bytes / 1e6:,.0f} MB", _written(stage))
            for stage in report.stages
        ],
    )
    yield from _table(
        ("engine", "precision"), [(f"`{engine.target}`", precision_of(engine)) for engine in report.engines]
    )


def junit_of(report: Report) -> str:
    """A test case for each stage, gate and lock: what failed is what the exit status is about."""
    cases = [(f"stage {stage.name}", 0.0 if stage.is_cached else stage.seconds, "") for stage in report.stages]
    cases += [(f"gate {gate.expression}", 0.0, "" if gate.is_met else gate.message) for gate in report.gates]
    if report.lock is not None:
        failed = "; ".join(report.lock.changed) or "nothing is equal"
        cases.append(("lock", 0.0, failed if report.lock.equality == "none" else ""))
    num_failed = sum(bool(message) for _, _, message in cases)
    total = sum(seconds for _, seconds, _ in cases)
    counts = {"tests": str(len(cases)), "failures": str(num_failed), "errors": "0", "time": f"{total:.3f}"}
    suites = ET.Element("testsuites", counts)
    suite = ET.SubElement(suites, "testsuite", {"name": "piston make", **counts})
    for name, seconds, message in cases:
        attributes = {"classname": "piston.make", "name": _xml(name), "time": f"{seconds:.3f}"}
        case = ET.SubElement(suite, "testcase", attributes)
        if message:
            ET.SubElement(case, "failure", {"message": _xml(message)})
    ET.indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + ET.tostring(suites, encoding="unicode") + "\n"


def precision_of(engine: EngineReport) -> str:
    """What an engine computes in, the largest part first."""
    parts = sorted(((share, name) for name, share in engine.linears.items() if share > 0), reverse=True)
    linears = ", ".join(f"{share:.1%} {name}" for share, name in parts)
    return f"{engine.dtype}, cache {engine.cache}" + (f", linears {linears}" if linears else "")


def took(stage: StageReport) -> str:
    """A stage's cost in a few words."""
    state = "cached" if stage.is_cached else f"{stage.seconds:.1f} s"
    return f"{state}, {stage.peak_bytes / 1e6:,.0f} MB of memory, {_written(stage)} written"


def _seconds(stage: StageReport) -> str:
    return f"cached ({stage.seconds:.1f} s)" if stage.is_cached else f"{stage.seconds:.1f} s"


def _written(stage: StageReport) -> str:
    return shown_bytes(stage.num_bytes)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _xml(text: str) -> str:
    return text.translate(_UNPRINTABLE)
