"""What a calibration did, as one page: the check, the sensitivity, the search, what stays in float, saturations."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.metadata import version

from piston.calibration.calibrate import Calibrated
from piston.calibration.observe.saturation import Saturated
from piston.calibration.recipe import HEAD
from piston.calibration.search.budget import Point, Spent
from piston.core.report.chart import Chart, Dot, scatter
from piston.core.report.heat_map import STYLE, Cell, heat_map
from piston.core.report.page import details, document, figure, table
from piston.evaluation.report import Agreement, Report
from piston.evaluation.table import change, number, share

MOST = 20  # rows of a table that is open
METRICS = {"ppl_change": "perplexity change, %", "kl": "KL divergence, nats", "top1": "top-1 agreement, %"}
EXTRA = STYLE + ".point.best{fill:var(--good)}\n"


def page_of(result: Calibrated) -> str:
    """The whole document."""
    model = result.manifest.model
    title = f"{escape(model.name)}: quantized to {escape(model.scheme)}"
    body = [
        *_summary(result),
        *_check(result),
        *_sensitivity(result),
        *([] if result.spent is None else _search(result.spent)),
        *_kept(result),
        *_remainders(result.remainders),
        *_saturations(result.saturated),
        *_settings(result),
        f'<p class="soft">Written by piston calibrate, Piston {escape(version("piston"))}.</p>',
    ]
    return document(title, body, EXTRA)


def _summary(result: Calibrated) -> list[str]:
    alone = len(result.weight_only)
    in_float = sum(name != HEAD for name in result.kept) - alone
    whole = sum(record.size for record in result.manifest.files.values())
    size = result.size
    sizes = (
        f"{whole / 1e6:,.0f} MB, {size.got / 1e6:,.1f} of them weights, where the bits of the scheme promise "
        f"{size.asked / 1e6:,.1f} ({size.excess:+.1%})."
    )
    return [
        f"<p>{len(result.quantized)} linears in integers, {alone} with weights alone, {in_float} layers in float.</p>",
        f"<p>{sizes}</p>",
    ]


def _check(result: Calibrated) -> list[str]:
    found = result.check
    reports = [report for report in (found.near, found.far) if report is not None]
    rows = [
        ("tokens scored", [f"{report.data.num_scored:,}" for report in reports]),
        ("perplexity change", [change(_agreement(report).perplexity_ratio) for report in reports]),
        ("KL divergence, mean", [f"{number(_agreement(report).kl.mean.value)} nats" for report in reports]),
        ("KL divergence, p99", [f"{number(_agreement(report).kl.p99)} nats" for report in reports]),
        ("top-1 agreement", [share(_agreement(report).top1) for report in reports]),
    ]
    gates = [f'<li class="gate met">✓ {escape(str(gate))}</li>' for gate in found.gates]
    warning = found.held_out.warning
    return [
        "<h2>Check against the float model</h2>",
        f"<p>On {escape(found.held_out.source)}, unseen by calibration. Intervals in brackets are of 95 %.</p>",
        *([] if warning is None else [f'<p class="gate not-met">{escape(warning)}</p>']),
        *table(["", *(f"rows of {report.data.window:,}" for report in reports)], rows),
        "<ul>",
        *gates,
        "</ul>",
        f"<p>It goes on from a row's beginning with <code>{escape(repr(found.generated))}</code>.</p>",
    ]


def _agreement(report: Report) -> Agreement:
    assert report.agreement is not None
    return report.agreement


def _sensitivity(result: Calibrated) -> list[str]:
    kept = set(result.kept)
    if result.spent is not None:
        cells = [
            Cell(names, value, not kept.isdisjoint(names))
            for names, value in ((key.split(","), value) for key, value in result.spent.harm.items())
        ]
        unit = "KL divergence in nats from the float model when these linears alone are in integers"
    else:
        cells = [Cell([name], value, name in kept) for name, value in result.sensitivity.items()]
        cells.sort(key=lambda cell: (cell.layer or 0, cell.linears[0]))
        unit = "squared error in INT8 by the squared length of what it disturbs, the stream or the linear's own output"
    if not cells:
        return []
    worst = max(cells, key=lambda cell: cell.value)
    described = f"{len(cells)} cells; the largest is {worst.value:.3g}, of {', '.join(worst.linears)}."
    rows = [
        (escape(", ".join(cell.linears)), [number(cell.value)]) for cell in sorted(cells, key=lambda cell: -cell.value)
    ]
    chart = heat_map(cells, "heat", "Sensitivity by layer and kind of linear", described)
    return figure("Sensitivity", chart, f"{unit}; logarithmic.", details(["linears", "value"], rows))


def _search(spent: Spent) -> list[str]:
    best = spent.best
    assert best is not None
    metric = next((name for name in ("kl", "top1") if spent.bound.startswith(name)), "ppl_change")
    how = "The whole search" if spent.is_complete else "The search until its time was over"
    caption = (
        f"{how}: {len(spent.points)} models measured in {spent.seconds:.0f} s; the budget is "
        f"{escape(spent.bound)}. Green is the one that was chosen."
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
        charts.append(scatter(chart, [_dot(place, point, metric, best) for place, point in points]))
    rows = [
        (
            str(place + 1),
            [
                f"{len(point.kept)}",
                f"{point.share:.1%}",
                f"{point.size / 1e6:,.1f}",
                f"{point.figures['ppl_change']:+.2%}",
                number(point.figures["kl"]),
                f"{point.figures['top1']:.2%}",
            ],
        )
        for place, point in enumerate(spent.points)
    ]
    heads = ["model", "in float", "in integers", "MB", "perplexity", "KL, nats", "top-1"]
    return [
        *figure("Quality by share in integers", charts[0], caption, details(heads, rows)),
        *figure("Quality by size", charts[1], "The same models by the bytes of their weights.", []),
    ]


def _dot(place: float, point: Point, metric: str, best: Point) -> Dot:
    style = "best" if point == best else "candidate"
    value = point.figures[metric] * (1 if metric == "kl" else 100)
    return Dot(place, value, f"{len(point.kept)} in float: {_shown(point)}", style)


def _shown(point: Point) -> str:
    figures = point.figures
    return (
        f"{point.share:.1%} in integers, {point.size / 1e6:,.1f} MB, perplexity {figures['ppl_change']:+.2%}, "
        f"KL {figures['kl']:.4g}, top-1 {figures['top1']:.2%}"
    )


def _kept(result: Calibrated) -> list[str]:
    chosen = set() if result.spent is None or result.spent.best is None else set(result.spent.best.kept)
    harm = (
        {}
        if result.spent is None
        else {name: value for key, value in result.spent.harm.items() for name in key.split(",")}
    )
    rows = []
    for name in result.kept:
        if name == HEAD:
            why = (
                "reads the last and least redundant values; piston build stores it in INT8 blocks unless told otherwise"
            )
        elif name in chosen:
            alone = (
                f"in integers its group alone costs {number(harm[name])} nats" if name in harm else "not ranked in time"
            )
            why = f"the budget: {alone}"
        elif name in result.sensitivity:
            why = f"INT8 moves its output by {result.sensitivity[name] ** 0.5:.1%}"
        else:
            why = "the recipe"
        rows.append((f"<code>{escape(name)}</code>", [escape(why)]))
    if result.manifest.model.scheme.startswith("fp"):
        return []
    heading = "What stays in float, and why"
    if result.weight_only:
        heading = "Whose activations stay in float, and why"
    return [f"<h2>{heading}</h2>", *table(["linear", "why"], rows)]


def _remainders(ratios: Mapping[str, int]) -> list[str]:
    if not ratios:
        return []
    rows = [(f"<code>{escape(name)}</code>", [str(ratio)]) for name, ratio in ratios.items()]
    return [
        "<h2>Remainders</h2>",
        f"<p>{escape(remainders_text(ratios))}.</p>",
        *details(["linear", "times as coarse"], rows),
    ]


def remainders_text(ratios: Mapping[str, int]) -> str:
    """One line on the linears whose input is rounded twice, given the ratio of the two scales of each."""
    low, high = min(ratios.values()), max(ratios.values())
    span = f"{low}" if low == high else f"{low} to {high}"
    return (
        f"what one scale leaves over is rounded once more for {len(ratios)} linears, by a scale {span} times as coarse"
    )


def _saturations(saturated: Mapping[str, Saturated]) -> list[str]:
    if not saturated:
        return []
    worst = sorted(saturated.items(), key=lambda item: (-item[1].share, -item[1].largest))
    rows = [
        (
            f"<code>{escape(name)}</code>",
            [f"{found.num_beyond:,} of {found.num_values:,}", f"{found.share:.4%}", f"{found.largest:.2f}"],
        )
        for name, found in worst
    ]
    beyond = sum(found.num_beyond > 0 for found in saturated.values())
    heads = ["what reads it, or its cache", "beyond the range", "share", "largest, in ranges"]
    return [
        "<h2>Saturation</h2>",
        f"<p>{beyond} of {len(saturated)} rounded tensors have values beyond their range on the rows of the check.</p>",
        *table(heads, rows[:MOST]),
        *(details(heads, rows[MOST:]) if len(rows) > MOST else []),
    ]


def _settings(result: Calibrated) -> list[str]:
    recipe = result.recipe
    record = result.manifest.made_by["calibration"]
    data = record["data"]
    rows: list[tuple[str, Sequence[str]]] = [
        ("scheme", [recipe.shown_scheme]),
        (
            "weights",
            [f"{recipe.grid.bits} bits, {f'blocks of {recipe.block}' if recipe.block else 'a scale a channel'}"],
        ),
        ("rounding", [recipe.rounding]),
    ]
    if recipe.scheme == "fp":
        del rows[1:]
    if recipe.scheme == "w8a8":
        rows += [("activation range", [recipe.method]), ("smoothing", ["yes" if recipe.smooth else "no"])]
    if recipe.kv == "int8":
        rows.append(("cache", [f"INT8, a scale for each {recipe.kv_granularity}"]))
    if data is not None:
        names = ", ".join(str(file["name"]) for file in data["files"])
        rows.append(
            ("calibration rows", [f"{data['rows']} of {data['seq_len']} tokens, seed {data['seed']}, of {names}"])
        )
        rows.append(("their SHA-256", [f"<code>{data['sha256']}</code>"]))
    if result.spent is not None:
        rows.append(("budget", [escape(result.spent.bound)]))
    rows.append(("float model", [f"<code>{recipe.model}</code>"]))
    return ["<h2>Settings</h2>", *table(["", "value"], [(label, list(cells)) for label, cells in rows])]
