"""The report of an evaluation as one page."""

import math
from collections.abc import Sequence

from markupsafe import Markup

from piston.core.report import code
from piston.core.report.chart import Chart, Point, Series, histogram, ranges, steps
from piston.core.report.page import Tile, details, figure, gates, heading, legend, page, paragraph, table
from piston.evaluation.report import Agreement, Answer, Answers, Report, WindowScore
from piston.evaluation.table import change, number, prefix_of, share, shown

_GROUPS = 240  # points of a chart: more windows than that are averaged in groups


def page_of(report: Report) -> str:
    """The whole document."""
    parts = [*gates(report.gates), *_figures(report), _perplexity(report)]
    if report.agreement is not None:
        parts += [_divergence(report.agreement), _by_context(report.agreement)]
    if report.answers is not None:
        parts += _answers(report.answers)
    footer = f"Written by piston eval, Piston {report.piston}."
    return page(f"{report.candidate.name}: evaluation", _tiles(report), parts, footer, _introduction(report))


def _tiles(report: Report) -> list[Tile]:
    tiles = [Tile("perplexity", number(report.candidate.perplexity.value), report.candidate.scheme)]
    if (found := report.agreement) is not None:
        _, _, interval = change(found.perplexity_ratio).partition(" ")
        tiles += [
            Tile("perplexity change", f"{found.perplexity_ratio.value - 1:+.2%}", interval),
            Tile("KL divergence, mean", number(found.kl.mean.value), f"nats; p99 {number(found.kl.p99)}"),
            Tile("top-1 agreement", f"{found.top1.value:.2%}"),
        ]
    if report.answers is not None:
        same = sum(answer.is_same for answer in report.answers.prompts)
        tiles.append(Tile("equal greedy answers", f"{same} of {report.answers.num_prompts}"))
    return tiles


def _introduction(report: Report) -> list[Markup]:
    data = report.data
    scored = f"{data.num_scored:,} of {data.num_tokens:,} tokens scored in {data.num_windows:,} windows."
    intervals = "Intervals in brackets are of 95 % (bootstrap over windows; Wilson for shares)."
    return [
        Markup("<p>{}: {}</p>").format(code(data.path), scored),
        paragraph(f"{data.rule}; {prefix_of(report)}. {intervals}", "soft"),
    ]


def _figures(report: Report) -> list[Markup]:
    models = [model for model in (report.reference, report.candidate) if model is not None]
    heads = ["reference", "candidate"] if report.reference is not None else ["model"]
    rows = [
        ("path", *(model.path for model in models)),
        ("scheme", *(model.scheme for model in models)),
        ("runs as", *(model.target if model.kind == "bundle" else "model directory" for model in models)),
        ("perplexity", *(shown(model.perplexity) for model in models)),
        ("nats per token", *(shown(model.nll) for model in models)),
        ("bits per byte", *("-" if model.bits_per_byte is None else shown(model.bits_per_byte) for model in models)),
        ("tokens per second read", *(f"{model.tokens_per_s:,.0f}" for model in models)),
    ]
    parts = [heading("Figures"), table(["", *heads], rows)]
    if (found := report.agreement) is not None:
        compared = [
            ("perplexity change", change(found.perplexity_ratio)),
            ("KL divergence, mean", f"{shown(found.kl.mean)} nats"),
            ("KL divergence, p50 / p99 / max", " / ".join(map(number, (found.kl.p50, found.kl.p99, found.kl.max)))),
            ("top-1 agreement", share(found.top1)),
            ("mean absolute logit difference", number(found.logit_distance)),
        ]
        if report.answers is not None:
            compared.append(("equal greedy answers", share(report.answers.same)))
        parts += [heading("Candidate against reference"), table(["", "value"], compared)]
    return parts


def _perplexity(report: Report) -> Markup:
    groups = _grouped(report.windows)
    own = [_mean([window.perplexity for window in group], group) for group in groups]
    series = [Series("candidate", "candidate", own)]
    if report.reference is not None:
        other = [_mean([window.reference_perplexity or 1.0 for window in group], group) for group in groups]
        series.insert(0, Series("reference", "reference", other))
    chart = Chart(
        "windows",
        "Perplexity of each window",
        f"{len(report.windows)} windows; the candidate's runs from {number(min(own))} to {number(max(own))}.",
        "window, in order of the text" if len(groups) == len(report.windows) else "windows, averaged with neighbours",
        "perplexity",
    )
    labels = [str(first + 1) for first in range(0, len(report.windows), len(groups[0]))]
    rows = [(label, *(number(line.values[index]) for line in series)) for index, label in enumerate(labels)]
    numbers = details(["window", *(line.name for line in series)], rows)
    caption = legend((line.name, line.style) for line in series)
    return figure("Perplexity by window", steps(chart, labels, series), caption, numbers)


def _divergence(agreement: Agreement) -> Markup:
    kl = agreement.kl
    used = [index for index, count in enumerate(kl.counts) if count]
    low, high = (used[0] // 2 * 2, used[-1] + 1) if used else (0, 2)
    edges = [f"{edge:.0e}".replace("e-0", "e-").replace("e+0", "e") for edge in kl.edges[low : high + 1]]
    counts = kl.counts[low:high]
    total = sum(kl.counts) + kl.num_zero
    chart = Chart(
        "kl",
        "Histogram of KL divergence",
        f"{total:,} tokens; median {number(kl.p50)}, 99th percentile {number(kl.p99)}, largest {number(kl.max)} nats.",
        "KL(reference ‖ candidate) in nats, logarithmic",
        "tokens",
    )
    caption = f"{kl.num_zero:,} of {total:,} tokens are at or below {kl.edges[0]:g} nats and not drawn."
    rows = [(f"{edges[index]} to {edges[index + 1]}", f"{count:,}") for index, count in enumerate(counts)]
    return figure(
        "KL divergence of tokens", histogram(chart, edges, counts), caption, details(["nats", "tokens"], rows)
    )


def _by_context(agreement: Agreement) -> Markup:
    bins = agreement.by_context
    labels = [f"{item.first_context}-{item.last_context}" for item in bins]
    points = [
        Point(0.0, 100 * item.top1.value, label, low=100 * (item.top1.low or 0), high=100 * (item.top1.high or 0))
        for label, item in zip(labels, bins, strict=True)
    ]
    worst = min(bins, key=lambda item: item.top1.value)
    chart = Chart(
        "context",
        "Top-1 agreement by position",
        f"The lowest agreement is {worst.top1.value:.1%}, of tokens with {worst.first_context} to {worst.last_context} "
        f"positions of context.",
        "positions of context before the token",
        "agreement, %",
    )
    caption = "Share of tokens whose likeliest successor is the reference's too, with intervals of 95 %."
    rows = [(label, share(item.top1), f"{item.num_tokens:,}") for label, item in zip(labels, bins, strict=True)]
    numbers = details(["context", "agreement", "tokens"], rows)
    return figure("Agreement by position", ranges(chart, points), caption, numbers)


def _answers(answers: Answers) -> list[Markup]:
    equal = [answer for answer in answers.prompts if answer.is_same]
    parts = [
        heading("Greedy answers"),
        paragraph(f"{len(equal)} of {answers.num_prompts} answers of up to {answers.max_tokens} tokens are the same."),
        *(_answer(answer) for answer in answers.prompts if not answer.is_same),
    ]
    if equal:
        rows = [(Markup("<pre>{}</pre>").format(answer.prompt),) for answer in equal]
        parts.append(details(["prompt"], rows, "Prompts with the same answer"))
    return parts


def _answer(answer: Answer) -> Markup:
    found = answer.divergence
    assert found is not None
    common = _num_common(answer.reference_text, answer.candidate_text)
    sides = [
        ("reference", answer.reference_text, found.reference),
        ("candidate", answer.candidate_text, found.candidate),
    ]
    cells = [
        Markup("<div><h4>{}: {}, margin {} nats</h4><pre>{}</pre></div>").format(
            side, code(repr(token.text)), number(token.margin), _highlighted(text, common)
        )
        for side, text, token in sides
    ]
    return Markup(
        '<article><h3>{}</h3><p class="soft">The answers differ at token {}.</p><div class="pair">{}</div></article>'
    ).format(code(answer.prompt), found.position, Markup("\n").join(cells))


def _num_common(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _highlighted(text: str, common: int) -> Markup:
    """The text with the first differing word, or its end, marked."""
    rest = text[common:]
    start = len(rest) - len(rest.lstrip())
    end = start + len((rest.split(maxsplit=1) or [""])[0])
    marked = rest[start:end] or "(end of the answer)"
    return Markup("{}<mark>{}</mark>{}").format(text[:common] + rest[:start], marked, rest[end:])


def _grouped(windows: Sequence[WindowScore]) -> list[Sequence[WindowScore]]:
    size = -(-len(windows) // _GROUPS)
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _mean(perplexities: Sequence[float], group: Sequence[WindowScore]) -> float:
    """Perplexity of several windows together."""
    total = sum(window.num_scored for window in group)
    pairs = zip(perplexities, group, strict=True)
    return math.exp(sum(math.log(value) * window.num_scored for value, window in pairs) / total)
