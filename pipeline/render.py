"""A report as text, as Markdown for a pull request, and as JUnit XML."""

from collections.abc import Iterator
from pathlib import Path

from piston.core.bundle.manifest import Manifest
from piston.core.bundle.sbom import sbom_of
from piston.core.errors import Error
from piston.core.json_text import json_text
from piston.core.outputs import write_output
from piston.core.report import code
from piston.core.report.junit import Case
from piston.core.report.junit import junit_of as document_of
from piston.core.report.markdown import table, text
from piston.core.units import shown
from piston.pipeline.gates import shown_value
from piston.pipeline.page import page_of
from piston.pipeline.report import FILES, SBOM, EngineReport, Report, StageReport


def write_reports(directory: Path, report: Report) -> None:
    """Write all four forms; raises Error where the directory cannot be written."""
    texts = (
        json_text(report.to_json(), indent=1, ensure_ascii=False) + "\n",
        junit_of(report),
        "\n".join(markdown_of(report)) + "\n",
        page_of(report),
    )
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise Error(f"Cannot write the report to {directory}: {problem.strerror}.") from problem
    for name, written in zip(FILES, texts, strict=True):
        write_output(directory / name, written)


def write_sbom(directory: Path, report: Report, model_license: str | None) -> None:
    """Write the bill of materials of the bundle that was published; raises as write_reports does."""
    bundle = Path(report.bundle)
    document = sbom_of(bundle, Manifest.read(bundle), model_license)
    write_output(directory / SBOM, json_text(document, indent=1, ensure_ascii=False) + "\n")


def lines_of(report: Report) -> Iterator[str]:
    """The report as text."""
    for stage in report.stages:
        yield f"{stage.name:<10} {took(stage)}"
    for engine in report.engines:
        yield f"engine     {engine.target}: {precision_of(engine)}"
    for gate in report.gates:
        yield f"gate       {'met    ' if gate.is_met else 'NOT MET'} {gate}"
    for mismatch in report.mismatches:
        yield f"verify     {mismatch}"
    if report.lock is not None:
        yield f"lock       {report.lock.equality}: {report.lock.path}"
        for change in report.lock.changed:
            yield f"           {change}"
    size = shown_value("bundle.size", report.values["bundle.size"])
    yield f"{report.bundle}: {'published' if report.is_published else 'NOT published'}, {report.scheme}, {size}"


def markdown_of(report: Report) -> Iterator[str]:
    """The report as Markdown for a pull request's comment or a job's summary."""
    yield f"## {'✅' if report.is_met else '❌'} {text(report.model)}, {report.scheme}"
    yield ""
    if report.gates:
        yield from table(
            ("gate", "", "measured"),
            [(code(gate.expression), "✅" if gate.is_met else "❌", gate.message) for gate in report.gates],
        )
    if report.lock is not None:
        yield f"Rebuilt against {code(Path(report.lock.path).name)}: **{report.lock.equality}**"
        yield ""
    for mismatch in report.mismatches:
        yield f"- verify: {text(mismatch)}"
    yield from table(
        ("stage", "time", "memory", "written"),
        [(stage.name, _seconds(stage), shown(stage.peak_bytes, "bytes"), _written(stage)) for stage in report.stages],
    )
    yield from table(
        ("engine", "precision"), [(code(engine.target), precision_of(engine)) for engine in report.engines]
    )


def junit_of(report: Report) -> str:
    """A test case for each stage, gate and lock, so that a failed case explains the exit status."""
    cases = [
        Case(f"stage {stage.name}", is_met=True, seconds=0.0 if stage.is_cached else stage.seconds)
        for stage in report.stages
    ]
    cases += [Case(f"gate {gate.expression}", gate.is_met, gate.message) for gate in report.gates]
    if report.lock is not None:
        is_equal = report.lock.equality != "none"
        said = "; ".join(report.lock.changed) or ("" if is_equal else "not reproducible")
        cases.append(Case("lock", is_equal, said))
    return document_of("piston make", cases)


def precision_of(engine: EngineReport) -> str:
    """The arithmetic of an engine, the largest share first."""
    parts = sorted(((share, name) for name, share in engine.linears.items() if share > 0), reverse=True)
    linears = ", ".join(f"{share:.1%} {name}" for share, name in parts)
    return f"{engine.dtype}, cache {engine.cache}" + (f", linears {linears}" if linears else "")


def took(stage: StageReport) -> str:
    """A stage's cost in a few words."""
    state = "cached" if stage.is_cached else f"{stage.seconds:.1f} s"
    return f"{state}, {shown(stage.peak_bytes, 'bytes')} of memory, {_written(stage)} written"


def _seconds(stage: StageReport) -> str:
    return f"cached ({stage.seconds:.1f} s)" if stage.is_cached else f"{stage.seconds:.1f} s"


def _written(stage: StageReport) -> str:
    return shown(stage.num_bytes, "bytes")
