"""What a calibration did, as one page: the check, the sensitivity, the search, what stays in float, saturations."""

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version

from markupsafe import Markup

from piston.calibration.check import Check
from piston.calibration.graph.linears import HEADS
from piston.calibration.observe.saturation import Saturated
from piston.calibration.result import Calibrated
from piston.calibration.search.budget import BudgetResult
from piston.calibration.search.budget import Point as Measured
from piston.core.report import code
from piston.core.report.chart import Cell, Chart, Point, heat_map, scatter
from piston.core.report.page import Tile, details, figure, gates, heading, page, paragraph, table
from piston.core.units import shown
from piston.evaluation.report import Agreement, Report
from piston.evaluation.table import change, number, share

MOST = 20  # rows of a table that is open
METRICS = {"ppl_change": "perplexity change, %", "kl": "KL divergence, nats", "top1": "top-1 agreement, %"}
_PLACE = re.compile(r"(?:^|\.)(\d+)\.(.+)$")  # the layer and the kind in a module path


def page_of(result: Calibrated) -> str:
    """The whole document."""
    model = result.manifest.model
    parts = [
        *_check(result),
        *_sensitivity(result),
        *([] if result.spent is None else _search(result.spent)),
        *_kept(result),
        *_remainders(result.remainders),
        *_saturations(result.saturated),
        *_settings(result),
    ]
    footer = f"Written by piston calibrate, Piston {version('piston')}."
    return page(f"{model.name}: quantized to {model.scheme}", _tiles(result), parts, footer)


def _checked(result: Calibrated) -> Check:
    assert isinstance(result.check, Check)  # the command refuses a page of others
    return result.check


def _tiles(result: Calibrated) -> list[Tile]:
    found, size = _agreement(_checked(result).near), result.size
    alone = len(result.weight_only)
    in_float = sum(name not in HEADS for name in result.kept) - alone
    whole = sum(record.size for record in result.manifest.files.values())
    _, _, interval = change(found.perplexity_ratio).partition(" ")
    size = result.size
    promised = (
        f"weights {size.actual / 1e6:,.1f} MB, by the scheme's bits {size.promised / 1e6:,.1f} ({size.excess:+.1%})"
    )
    return [
        Tile("perplexity change", f"{found.perplexity_ratio.value - 1:+.2%}", interval),
        Tile("KL divergence, mean", number(found.kl.mean.value), "nats"),
        Tile("top-1 agreement", f"{found.top1.value:.2%}"),
        Tile("linears in integers", str(len(result.quantized)), f"{alone} with weights alone, {in_float} in float"),
        Tile("size", shown(whole, "bytes"), promised),
    ]


def _check(result: Calibrated) -> Iterator[Markup]:
    found = _checked(result)
    reports = [report for report in (found.near, found.far) if report is not None]
    rows = [
        ("tokens scored", *(f"{report.data.num_scored:,}" for report in reports)),
        ("perplexity change", *(change(_agreement(report).perplexity_ratio) for report in reports)),
        ("KL divergence, mean", *(f"{number(_agreement(report).kl.mean.value)} nats" for report in reports)),
        ("KL divergence, p99", *(f"{number(_agreement(report).kl.p99)} nats" for report in reports)),
        ("top-1 agreement", *(share(_agreement(report).top1) for report in reports)),
    ]
    yield heading("Check against the float model")
    yield paragraph(f"On {found.held_out.source}, unseen by calibration. Intervals in brackets are of 95 %.")
    if found.held_out.warning is not None:
        yield paragraph(found.held_out.warning, "gate not-met")
    yield table(["", *(f"rows of {report.data.window:,}" for report in reports)], rows)
    yield Markup("<p>It goes on from a row's beginning with {}.</p>").format(code(repr(found.generated)))
    yield from gates(found.gates)


def _agreement(report: Report) -> Agreement:
    assert report.agreement is not None
    return report.agreement


def _sensitivity(result: Calibrated) -> Iterator[Markup]:
    kept = set(result.kept)
    if result.spent is not None:
        groups = [(key.split(","), value) for key, value in result.spent.cost_alone.items()]
        unit = "KL divergence in nats from the float model when these linears alone are in integers"
    else:
        groups = sorted(
            (([name], value) for name, value in result.sensitivity.items()),
            key=lambda group: (_layer(group[0]) or 0, group[0]),
        )
        unit = "squared error in INT8 by the squared length of what it disturbs, the stream or the linear's own output"
    if not groups:
        return
    cells = [
        Cell(
            str(layer),
            _kind(names),
            value,
            f"{', '.join(names)}: {value:.3g}{'' if kept.isdisjoint(names) else ', stays in float'}",
            not kept.isdisjoint(names),
        )
        for layer, names, value in sorted(
            ((_layer(names), names, value) for names, value in groups if _layer(names) is not None),
            key=lambda item: item[0] or 0,
        )
    ]
    worst = max(groups, key=lambda group: group[1])
    described = f"{len(groups)} cells; the largest is {worst[1]:.3g}, of {', '.join(worst[0])}."
    chart = Chart("heat", "Sensitivity by layer and kind of linear", described, "")
    rows = [(", ".join(names), number(value)) for names, value in sorted(groups, key=lambda group: -group[1])]
    numbers = details(["linears", "value"], rows)
    yield figure("Sensitivity", heat_map(chart, cells, "stays in float"), f"{unit}; logarithmic.", numbers)


def _layer(names: Sequence[str]) -> int | None:
    """The first number in the path of linears that are measured together."""
    match = _PLACE.search(names[0])
    return int(match[1]) if match else None


def _kind(names: Sequence[str]) -> str:
    """What is the same in every layer."""
    parts = [match[2] if (match := _PLACE.search(name)) else name for name in names]
    return ", ".join(part.rpartition(".")[2].removesuffix("_proj") for part in parts)


def _search(spent: BudgetResult) -> list[Markup]:
    best = spent.best
    assert best is not None
    metric = next((name for name in ("kl", "top1") if spent.bound.startswith(name)), "ppl_change")
    how = "The whole search" if spent.is_complete else "The search until its time was over"
    caption = (
        f"{how}: {len(spent.points)} models measured in {spent.seconds:.0f} s; the budget is "
        f"{spent.bound}. Green is the one that was chosen."
    )
    dots = [
        ("quality-share", "multiply-adds of the linears in integers, %", [100 * point.share for point in spent.points]),
        ("quality-size", "size of the weights, MB", [point.size / 1e6 for point in spent.points]),
    ]
    charts = []
    for name, label, places in dots:
        chart = Chart(
            name,
            f"{METRICS[metric]} by {label}",
            f"{len(spent.points)} models; the chosen one has {_shown(best)}.",
            label,
            METRICS[metric],
        )
        points = zip(places, spent.points, strict=True)
        charts.append(scatter(chart, [_point(place, point, metric, best) for place, point in points]))
    rows = [
        (
            str(place + 1),
            f"{len(point.kept)}",
            f"{point.share:.1%}",
            f"{point.size / 1e6:,.1f}",
            f"{point.figures['ppl_change']:+.2%}",
            number(point.figures["kl"]),
            f"{point.figures['top1']:.2%}",
        )
        for place, point in enumerate(spent.points)
    ]
    heads = ["model", "in float", "in integers", "MB", "perplexity", "KL, nats", "top-1"]
    return [
        figure("Quality by share in integers", charts[0], caption, details(heads, rows)),
        figure("Quality by size", charts[1], "The same models by the bytes of their weights."),
    ]


def _point(place: float, point: Measured, metric: str, best: Measured) -> Point:
    style = "best" if point == best else "candidate"
    value = point.figures[metric] * (1 if metric == "kl" else 100)
    return Point(place, value, f"{len(point.kept)} in float: {_shown(point)}", style)


def _shown(point: Measured) -> str:
    figures = point.figures
    return (
        f"{point.share:.1%} in integers, {point.size / 1e6:,.1f} MB, perplexity {figures['ppl_change']:+.2%}, "
        f"KL {figures['kl']:.4g}, top-1 {figures['top1']:.2%}"
    )


def _kept(result: Calibrated) -> list[Markup]:
    chosen = set() if result.spent is None or result.spent.best is None else set(result.spent.best.kept)
    cost_alone = (
        {}
        if result.spent is None
        else {name: value for key, value in result.spent.cost_alone.items() for name in key.split(",")}
    )
    rows = []
    for name in result.kept:
        if name in HEADS:
            why = (
                "reads the last and least redundant values; piston build stores it in INT8 blocks unless told otherwise"
            )
        elif name in chosen:
            alone = (
                f"in integers its group alone costs {number(cost_alone[name])} nats"
                if name in cost_alone
                else "not ranked in time"
            )
            why = f"the budget: {alone}"
        elif name in result.sensitivity:
            why = f"INT8 moves its output by {result.sensitivity[name] ** 0.5:.1%}"
        else:
            why = "the recipe"
        rows.append((code(name), why))
    if result.manifest.model.scheme.startswith("fp"):
        return []
    subject = "Whose activations stay" if result.weight_only else "What stays"
    return [heading(f"{subject} in float, and why"), table(["linear", "why"], rows)]


def _remainders(ratios: Mapping[str, int]) -> list[Markup]:
    if not ratios:
        return []
    return [
        heading("Remainders"),
        paragraph(f"{remainders_text(ratios)}."),
        details(["linear", "times as coarse"], [(code(name), str(ratio)) for name, ratio in ratios.items()]),
    ]


def remainders_text(ratios: Mapping[str, int]) -> str:
    """One line on the linears whose input is rounded twice, given the ratio of the two scales of each."""
    low, high = min(ratios.values()), max(ratios.values())
    span = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"what one scale leaves over is rounded once more for {len(ratios)} linears, by a scale {span} times as coarse"
    )


def _saturations(saturated: Mapping[str, Saturated]) -> Iterator[Markup]:
    if not saturated:
        return
    worst = sorted(saturated.items(), key=lambda item: (-item[1].share, -item[1].largest))
    rows = [
        (code(name), f"{found.num_beyond:,} of {found.num_values:,}", f"{found.share:.4%}", f"{found.largest:.2f}")
        for name, found in worst
    ]
    beyond = sum(found.num_beyond > 0 for found in saturated.values())
    heads = ["what reads it, or its cache", "beyond the range", "share", "largest, in ranges"]
    yield heading("Saturation")
    yield paragraph(
        f"{beyond} of {len(saturated)} rounded tensors have values beyond their range on the rows of the check."
    )
    yield table(heads, rows[:MOST])
    if len(rows) > MOST:
        yield details(heads, rows[MOST:], "The others")


def _settings(result: Calibrated) -> list[Markup]:
    recipe = result.recipe
    data = result.manifest.made_by["calibration"]["data"]
    rows: list[tuple[str, str]] = [("scheme", recipe.shown_scheme)]
    if recipe.scheme != "fp":
        blocks = f"blocks of {recipe.block}" if recipe.block else "a scale a channel"
        rows += [("weights", f"{recipe.grid.bits} bits, {blocks}"), ("rounding", recipe.rounding)]
    if recipe.scheme == "w8a8":
        rows += [("activation range", recipe.method), ("smoothing", "yes" if recipe.smooth else "no")]
    if recipe.kv == "int8":
        rows.append(("cache", f"INT8, a scale for each {recipe.kv_granularity}"))
    if data is not None:
        names = ", ".join(str(file["name"]) for file in data["files"])
        rows.append(
            ("calibration rows", f"{data['rows']} of {data['seq_len']} tokens, seed {data['seed']}, of {names}")
        )
        rows.append(("their SHA-256", code(data["sha256"])))
    if result.spent is not None:
        rows.append(("budget", result.spent.bound))
    rows.append(("float model", code(recipe.model)))
    return [heading("Settings"), table(["", "value"], rows)]
