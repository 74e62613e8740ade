"""The plots of a report: latency distribution, speed by length and rows, ratios to other systems, roofline."""

from collections.abc import Iterator, Sequence

import numpy as np
from markupsafe import Markup

from piston.bench.load.plots import load_figures
from piston.bench.load.setting import LoadSetting
from piston.bench.metrics import METRICS, STAGE_METRICS, metric_of, samples_of
from piston.bench.report import Report, System
from piston.bench.roofline import roofline_figures
from piston.bench.scaling_figures import growth_figures
from piston.bench.table import ranged, ratio_text
from piston.bench.workload import Setting
from piston.core.report.chart import Bar, Chart, Curve, bars, curves
from piston.core.report.page import figure, legend
from piston.core.statistics import ConfidenceInterval

_STYLES = (
    "own",
    *(f"c{number}" for number in range(1, 14)),
)  # line styles: the seven colours dashed, then six of them solid
_RATIOS = ("rtf", "decode", "prefill", "encode", "throughput", "goodput", "first_token", "peak")
_STAGE_FIGURES = ("seconds", "peak")
_POINTS = 101  # of a distribution's curve
_LEAST = 1e-3  # milliseconds: pieces of a stream that come together have no time between them, and the axis no zero


def figures_of(report: Report) -> Iterator[Markup]:
    """All plots for which the report has data, as markup with headings and captions."""
    yield from _ratios(report)
    yield from _latency(report)
    yield from _against_length(report, "decode", "prompt_len")
    yield from _against_length(report, "prefill", "prompt_len")
    yield from _against_length(report, "decode", "batch")
    styles = [style_of(index) for index in range(len(report.systems))]
    for heading, svg, caption in load_figures(report, styles):
        yield figure(heading, svg, Markup("{}<br>{}").format(keys(report.systems), caption))
    for heading, svg, caption in growth_figures(report, styles):
        yield figure(heading, svg, Markup("{}<br>{}").format(keys(report.systems), caption))
    for name in _STAGE_FIGURES:
        yield from _stages(report, name)
    if report.profile is not None:
        yield from roofline_figures(report.profile)


def style_of(index: int) -> str:
    """The style class of the index-th system: the bundle's own colour, then others, then grey."""
    return _STYLES[index] if index < len(_STYLES) else "other"


def keys(systems: Sequence[System]) -> Markup:
    """A line of its style before each system's name."""
    return legend((system.name, style_of(index)) for index, system in enumerate(systems))


def _ratios(report: Report) -> Iterator[Markup]:
    places: list[Setting | LoadSetting | None] = [measured.setting for measured in report.systems[0].measured]
    for index, place in enumerate([*places, None]):
        found = [ratio for ratio in report.ratios if ratio.setting == place and ratio.metric in _RATIOS]
        if not found:
            continue
        name = "new processes" if place is None else place.name
        rows = [
            Bar(
                f"{metric_of(item.metric).described}: {item.rival}",
                _verdict(item.ratio),
                item.ratio.value,
                item.ratio.low,
                item.ratio.high,
                ratio_text(item.ratio),
            )
            for item in sorted(found, key=lambda item: (_RATIOS.index(item.metric), -item.ratio.value))
        ]
        chart = Chart(
            f"ratios-{index}",
            f"Ratios to rivals, {name}",
            "; ".join(f"{row.name} {row.text}" for row in rows),
            "how many times better the bundle is",
            "",
        )
        caption = (
            "Medians over neighbouring runs, with intervals of 95 %. Right of the dashed line the bundle is better. "
            "Grey: the interval contains 1."
        )
        yield figure(f"Against rivals: {name}", bars(chart, rows, reference=1.0), caption)


def _verdict(ratio: ConfidenceInterval) -> str:
    """The style of a ratio's bar: whether the whole interval is on one side of 1."""
    low = ratio.value if ratio.low is None else ratio.low
    high = ratio.value if ratio.high is None else ratio.high
    return "won" if low > 1 else "lost" if high < 1 else "even"


def _latency(report: Report) -> Iterator[Markup]:
    shares = np.linspace(0, 100, _POINTS)
    for index, own in enumerate(report.systems[0].measured):
        lines = []
        if any("itl" not in system.measured[index].metrics for system in report.systems):
            continue
        for which, system in enumerate(report.systems):
            runs = [sample["itl"] for sample in samples_of(system.measured[index])]
            values = np.maximum(np.percentile(np.concatenate(runs), shares) * 1e3, _LEAST)
            lines.append(Curve(system.name, style_of(which), values.tolist(), shares.tolist(), marks=False))
        median = own.metrics["itl"]["p50"].value * 1e3
        last = own.metrics["itl"]["p99"].value * 1e3
        chart = Chart(
            f"latency-{index}",
            f"Inter-token latency, {own.setting.name}",
            f"The bundle's median is {median:.3g} ms, its 99th percentile {last:.3g} ms.",
            "milliseconds between tokens, logarithmic",
            "share of tokens, %",
        )
        heading = f"Inter-token latency: {own.setting.name}"
        yield figure(
            heading, curves(chart, lines, log_x=True), Markup("Share of tokens within. {}").format(keys(report.systems))
        )


def _against_length(report: Report, metric: str, over: str) -> Iterator[Markup]:
    """Speed over prompt lengths or rows, one plot for each of the other numbers of a setting."""
    settings = [measured.setting for measured in report.systems[0].settings if metric in measured.metrics]
    others = ("batch" if over == "prompt_len" else "prompt_len", "gen_len", "neighbours", "num_beams")
    groups = dict.fromkeys(tuple(getattr(setting, name) for name in others) for setting in settings)
    for index, group in enumerate(groups):
        same = [s for s in settings if tuple(getattr(s, name) for name in others) == group]
        if len(same) < 2:  # noqa: PLR2004 - a line has two ends
            continue
        xs = [float(getattr(setting, over)) for setting in sorted(same)]
        lines = []
        for which, system in enumerate(report.systems):
            medians = {m.setting: m.metrics[metric]["p50"].value for m in system.settings}
            lines.append(Curve(system.name, style_of(which), xs, [medians[setting] for setting in sorted(same)]))
        label = "prompt length" if over == "prompt_len" else "rows together"
        numbers = [(name, value) for name, value in zip(others, group, strict=True) if value > (name == "num_beams")]
        fixed = ", ".join(f"{name.replace('_len', '').replace('num_', '')} {value}" for name, value in numbers)
        chart = Chart(
            f"{metric}-{over}-{index}",
            f"{METRICS[metric].described} against {label}",
            f"The bundle: {', '.join(f'{y:,.0f} at {x:,.0f}' for x, y in zip(xs, lines[0].ys, strict=True))} tokens/s.",
            f"{label}",
            "tokens per second",
        )
        heading = f"{METRICS[metric].described.capitalize()} against {label}: {fixed}"
        yield figure(
            heading, curves(chart, lines), Markup("Medians, all rows together. {}").format(keys(report.systems))
        )


def _stages(report: Report, name: str) -> Iterator[Markup]:
    """A figure of the stages of recipes, one bar each; the baseline's below this Piston's."""
    metric = STAGE_METRICS[name]
    scale = 1.0 if metric.unit == "s" else 1e-6
    rows = []
    for index in range(len(report.systems[0].stages)):
        for which, system in enumerate(report.systems):
            for stage in system.stages[index : index + 1]:
                found = stage.metrics[name]["p50"]
                low, high = (None if end is None else scale * end for end in (found.low, found.high))
                label = stage.name if which == 0 else f"{stage.name} ({system.name})"
                text = ranged(found, metric.unit)
                rows.append(Bar(label, style_of(which), scale * found.value, low, high, text))
    if not rows:
        return
    chart = Chart(
        f"stages-{name}",
        f"Stages: {metric.described}",
        "; ".join(f"{row.name} {row.text}" for row in rows),
        "seconds" if metric.unit == "s" else "MB",
        "",
    )
    yield figure(f"Stages: {metric.described}", bars(chart, rows), "Medians of new processes, with intervals of 95 %.")
