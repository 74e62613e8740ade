"""The report as one page."""

from collections.abc import Iterator

from markupsafe import Markup

from piston.bench.figures import figures_of
from piston.bench.metrics import METRICS, STAGE_METRICS, metric_of
from piston.bench.report import MeasuredLoad, Report
from piston.bench.table import beside, load_remarks, machine_lines, shown, stage_rows
from piston.core.report import code
from piston.core.report.page import Tile, details, gates, heading, page, paragraph, table
from piston.core.statistics import ConfidenceInterval
from piston.core.units import shown as written

_QUANTILES = ("p50", "p90", "p95", "p99")
_HEADLINES = (
    *("rtf", "first_segment", "ttft", "tpot", "prefill", "encode", "decode"),
    *("throughput", "goodput"),
)  # of the first setting
_START_HEADLINES = ("first_token", "peak")


def page_of(report: Report) -> str:
    """The whole document."""
    lead = [paragraph(line, "soft") for line in machine_lines(report)]
    parts = [*_baseline(report), *gates(report.gates), *_medians(report), *figures_of(report), *_details(report)]
    footer = f"Written by piston bench, Piston {report.piston}, {report.date}."
    return page(f"{report.systems[0].name}: benchmark", list(_tiles(report)), parts, footer, lead)


def _tiles(report: Report) -> Iterator[Tile]:
    """Medians of the first setting and of the starts; of recipes the time of each stage."""
    own = report.systems[0]
    for stage in own.stages:
        peak = written(stage.metrics["peak"]["p50"].value, "bytes")
        yield Tile(stage.name, written(stage.metrics["seconds"]["p50"].value, "s"), f"peak memory {peak}")
    for measured in own.measured[:1]:
        for name in _HEADLINES:
            if name in measured.metrics:
                value = written(measured.metrics[name]["p50"].value, metric_of(name).unit)
                yield Tile(metric_of(name).described, value, measured.setting.name)
    for name in _START_HEADLINES:
        if name in own.metrics:
            yield Tile(METRICS[name].described, written(own.metrics[name]["p50"].value, METRICS[name].unit))


def _baseline(report: Report) -> Iterator[Markup]:
    if report.baseline is not None:
        yield heading("Against the baseline")
        yield Markup("<p>{} {}</p>").format(report.baseline.kind, code(report.baseline.path))
        for note in report.baseline.notes:
            yield paragraph(f"differs: {note}")


def _medians(report: Report) -> Iterator[Markup]:
    yield heading("Medians")
    if report.ratios:
        yield paragraph("In brackets: how many times better the bundle is, with intervals of 95 %.", "soft")
    yield from (table(heads, rows) for heads, rows in beside(report))
    for measured in report.systems[0].measured:
        if isinstance(measured, MeasuredLoad):
            yield paragraph(f"{measured.setting.name}: {'; '.join(load_remarks(measured))}.", "soft")
    if report.systems[0].stages:
        yield table(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))


def _details(report: Report) -> Iterator[Markup]:
    if report.systems[0].measured:
        yield heading("All quantiles")
    for system in report.systems:
        versions = ", ".join(f"{name} {version}" for name, version in system.versions.items())
        tables = [(measured.setting.name, measured.metrics) for measured in system.measured]
        tables += [("new processes", system.metrics)] if system.metrics else []
        for name, metrics in tables:
            rows = [_row(metric, metrics[metric]) for metric in metrics]
            yield details([name, *_QUANTILES], rows, f"{system.name}, {name} ({versions})")


def _row(name: str, quantiles: dict[str, ConfidenceInterval]) -> list[str]:
    return [metric_of(name).described, *(shown(name, quantiles[quantile]) for quantile in _QUANTILES)]
