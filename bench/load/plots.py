"""Plots of a server under load: what it generates and how long it takes, against what is asked of it."""

from collections.abc import Iterator, Sequence

from markupsafe import Markup

from piston.bench.load.setting import LoadSetting
from piston.bench.metrics import LOAD_METRICS
from piston.bench.report import MeasuredLoad, Report
from piston.core.report.chart import Chart, Curve, curves

Figure = tuple[str, Markup, str]  # heading, plot, caption
# metric, quantile, scale of its axis, the axis
_PLOTS = (
    ("throughput", "p50", 1.0, "tokens per second"),
    ("goodput", "p50", 1.0, "requests per second within the objective"),
    ("ttft", "p95", 1e3, "milliseconds to the first token, p95"),
    ("itl", "p95", 1e3, "milliseconds between tokens, p95"),
)


def load_figures(report: Report, styles: Sequence[str]) -> Iterator[Figure]:
    """Each figure against the concurrency or the rate, one plot for each choice of lengths; `styles` is by system."""
    groups: dict[tuple[object, ...], list[LoadSetting]] = {}
    for measured in report.systems[0].loads:
        groups.setdefault(_alike(measured.setting), []).append(measured.setting)
    for index, settings in enumerate(groups.values()):
        if len(settings) < 2:  # noqa: PLR2004 - a line has two ends
            continue
        for metric, quantile, scale, label in _PLOTS:
            lines = []
            for system, style in zip(report.systems, styles, strict=True):
                found = [item for item in system.loads if item.setting in settings and metric in item.metrics]
                xs = [_offered(item.setting) for item in found]
                ys = [scale * item.metrics[metric][quantile].value for item in found]
                lines.append(Curve(system.name, style, xs, ys))
            if not all(line.xs for line in lines):
                continue  # answers of one token have no gaps
            heading = f"{LOAD_METRICS[metric].described.capitalize()}: {_fixed(settings[0])}"
            said = ", ".join(f"{y:,.4g} at {x:g}" for x, y in zip(lines[0].xs, lines[0].ys, strict=True))
            axis = "requests at a time" if settings[0].rate is None else "requests a second"
            chart = Chart(f"load-{metric}-{index}", heading, f"The first system: {said}.", axis, label)
            yield heading, curves(chart, lines), _caption(report.systems[0].loads, settings)


def _alike(setting: LoadSetting) -> tuple[object, ...]:
    """What settings of one plot share."""
    lengths = (setting.prompt_len, setting.gen_len, setting.shared_prefix, setting.long_prompt)
    return (*lengths, setting.prompts, setting.neighbours, setting.rate is None)


def _offered(setting: LoadSetting) -> float:
    return float(setting.concurrency or 0) if setting.rate is None else setting.rate


def _fixed(setting: LoadSetting) -> str:
    return setting.name.partition(", ")[2]


def _caption(loads: Sequence[MeasuredLoad], settings: Sequence[LoadSetting]) -> str:
    invalid = [f"{_offered(item.setting):g}" for item in loads if item.setting in settings and item.invalid is not None]
    return f"Invalid, as the server did not keep up: at {', '.join(invalid)}." if invalid else "All runs are valid."
