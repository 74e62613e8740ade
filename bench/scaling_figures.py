"""Plots of how cost grows, each with a caption."""

from collections.abc import Iterator

from markupsafe import Markup

from piston.bench.report import Report
from piston.bench.scaling import contexts, decode_ms, growth_verdicts, is_growth, load_points, prefill_ms
from piston.core.report.chart import Chart, Curve, curves

Figure = tuple[str, Markup, str]  # heading, plot, caption


def growth_figures(report: Report, styles: list[str]) -> Iterator[Figure]:
    """Heading, plot and verdict of each; empty where too few contexts were measured. `styles` has one per system."""
    if not is_growth(report):
        return
    verdicts = growth_verdicts(report)
    for name, heading, of, word in (
        ("growth-prefill", "Prefill per token against context", prefill_ms, "prefill"),
        ("growth-decode", "Decode step against context", decode_ms, "decode"),
    ):
        said = " ".join(verdict for verdict in verdicts if word in verdict)
        lines = [
            Curve(system.name, style, [float(length) for length in contexts(system)], of(system))
            for system, style in zip(report.systems, styles, strict=True)
        ]
        yield heading, curves(Chart(name, heading, said, "tokens of context", "milliseconds per token"), lines), said
    points = load_points(report)
    if len(points) > 1:
        said = " ".join(verdict for verdict in verdicts if verdict.startswith("Loading"))
        chart = Chart(
            "growth-load", "Loading against size", said or "Loading against size", "MB on disk", "milliseconds"
        )
        line = Curve("every system", "own", [size for _, size, _ in points], [load for _, _, load in points])
        names = "; ".join(f"{name} {size:,.0f} MB, {load:,.0f} ms" for name, size, load in points)
        yield "Loading against size", curves(chart, [line]), f"{said} {names}.".strip()
