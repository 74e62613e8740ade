"""The report as lines of text."""

from collections.abc import Iterator, Sequence

from piston.bench.metrics import METRICS, STAGE_METRICS, metric_of
from piston.bench.report import Measured, MeasuredLoad, Ratio, Report, System
from piston.core.statistics import ConfidenceInterval
from piston.core.units import Unit
from piston.core.units import shown as written

_QUANTILES = ("p50", "p90", "p95", "p99")
_RIVAL_METRICS = ("rtf", "first_segment", "ttft", "tpot", "prefill", "encode", "decode")
_LOAD_METRICS = ("ttft", "itl", "tpot", "throughput", "goodput")
_START_METRICS = ("first_token", "load", "peak")


def lines_of(report: Report) -> Iterator[str]:
    """The whole table: the machine, the bundle in detail, the other systems, and the gates."""
    yield from machine_lines(report)
    own = report.systems[0]
    for measured in own.measured:
        yield ""
        yield f"{own.name}: {measured.setting.name}"
        yield from grid(["", *_QUANTILES], [_quantiles(name, measured.metrics[name]) for name in measured.metrics])
        if isinstance(measured, MeasuredLoad):
            yield from load_remarks(measured)
    if own.metrics:
        yield ""
        yield f"{own.name}: new processes"
        yield from grid(["", *_QUANTILES], [_quantiles(name, own.metrics[name]) for name in own.metrics])
    if len(report.systems) > 1:
        for heads, rows in beside(report):
            yield ""
            yield "medians (in brackets: how many times better the bundle is)"
            yield from grid(heads, rows)
    yield from stage_lines(report)
    if report.gates:
        yield ""
        yield from gate_lines(report)


def load_remarks(measured: MeasuredLoad) -> Iterator[str]:
    """What a reader of a load's figures must know: whether they are valid, and what the client itself takes."""
    if measured.invalid is not None:
        yield f"invalid: {measured.invalid}; these latencies are not those of a server that keeps up"
    seconds = sum(run.seconds for run in measured.runs)
    share = sum(run.client_seconds for run in measured.runs) / seconds if seconds else 0.0
    limit = "" if measured.client_limit is None else f", and reads {measured.client_limit:,.0f} tokens/s from an echo"
    yield f"the client takes {share:.1%} of one processor{limit}"


def machine_lines(report: Report) -> Iterator[str]:
    """The machine and the options."""
    machine, options = report.machine, report.options
    load = "" if machine.load_average is None else f", load {machine.load_average:.2f} before"
    yield f"{machine.cpu}: {' '.join(machine.instructions)}; {machine.num_cores} cores, {machine.threads} threads{load}"
    if machine.gpu is not None:
        yield f"{machine.gpu}, driver {machine.driver}"
    starts = "" if report.systems[0].stages or report.systems[0].loads else f", {options.starts} new processes"
    runs = f"{options.repeats} run{'s' if options.repeats > 1 else ''}"
    yield f"{runs} after {options.warmup} to warm up{starts}; intervals of 95 % (bootstrap over runs)"


def gate_lines(report: Report) -> Iterator[str]:
    """The baseline and each gate's verdict."""
    if report.baseline is not None:
        yield f"against {report.baseline.kind} {report.baseline.path}"
        yield from (f"  differs: {note}" for note in report.baseline.notes)
    for gate in report.gates:
        yield f"{'ok  ' if gate.is_met else 'FAIL'} {gate}"


def stage_lines(report: Report) -> Iterator[str]:
    """Stages of recipes: medians with intervals; a baseline Piston has its own rows."""
    if report.systems[0].stages:
        yield ""
        yield from grid(["stage", *(metric.described for metric in STAGE_METRICS.values())], stage_rows(report))


def stage_rows(report: Report) -> list[list[str]]:
    """A row of text for each stage of each Piston."""
    return [
        [
            stage.name if system is report.systems[0] else f"{stage.name} ({system.name})",
            *(ranged(stage.metrics[name]["p50"], metric.unit) for name, metric in STAGE_METRICS.items()),
        ]
        for index in range(len(report.systems[0].stages))
        for system in report.systems
        for stage in system.stages[index : index + 1]
    ]


def shown(name: str, estimate: ConfidenceInterval) -> str:
    """A figure of a run or start in its unit, with its interval."""
    return ranged(estimate, metric_of(name).unit)


def ranged(estimate: ConfidenceInterval, unit: Unit) -> str:
    """A value in its unit, with its interval."""
    value = written(estimate.value, unit)
    if estimate.low is None or estimate.high is None:
        return value
    return f"{value} [{written(estimate.low, unit)}, {written(estimate.high, unit)}]"


def ratio_text(estimate: ConfidenceInterval) -> str:
    """A ratio with its interval."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.2f}x"
    return f"{estimate.value:.2f}x [{estimate.low:.2f}, {estimate.high:.2f}]"


def grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Align columns to their longest cell."""
    table = [list(heads), *(list(row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(heads))]
    for row in table:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def ratio_of(ratios: Sequence[Ratio], system: System, metric: str, measured: Measured | MeasuredLoad | None) -> str:
    """The cell of a rival: how many times better the bundle is."""
    setting = None if measured is None else measured.setting
    found = [r for r in ratios if r.rival == system.name and r.metric == metric and r.setting == setting]
    return f" ({ratio_text(found[0].ratio)})" if found else ""


def beside(report: Report) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Heads and rows of every system's medians, for each setting and for start-ups; other systems with their ratio."""
    systems = report.systems
    for index, measured in enumerate(systems[0].measured):
        wanted = _LOAD_METRICS if isinstance(measured, MeasuredLoad) else _RIVAL_METRICS
        names = [name for name in wanted if all(name in item.measured[index].metrics for item in systems)]
        heads = [measured.setting.name, *(metric_of(name).described for name in names)]
        yield heads, [_row(report, item, names, item.measured[index].metrics, item.measured[index]) for item in systems]
    if systems[0].metrics:
        names = [name for name in _START_METRICS if name in systems[0].metrics]
        heads = ["new processes", *(METRICS[name].described for name in names)]
        yield heads, [_row(report, system, names, system.metrics, None) for system in systems]


def _row(
    report: Report,
    system: System,
    names: Sequence[str],
    metrics: dict[str, dict[str, ConfidenceInterval]],
    measured: Measured | MeasuredLoad | None,
) -> list[str]:
    cells = [
        written(metrics[name]["p50"].value, metric_of(name).unit) + ratio_of(report.ratios, system, name, measured)
        for name in names
    ]
    is_invalid = isinstance(measured, MeasuredLoad) and measured.invalid is not None
    return [f"{system.name} (invalid)" if is_invalid else system.name, *cells]


def _quantiles(name: str, quantiles: dict[str, ConfidenceInterval]) -> list[str]:
    return [metric_of(name).described, *(shown(name, quantiles[quantile]) for quantile in _QUANTILES)]
