"""The report of an evaluation as one page."""

import math
from collections.abc import Sequence
from html import escape

from piston.core.report.chart import Chart, Series, histogram, line_chart, range_chart
from piston.core.report.page import details, document, figure, table
from piston.evaluation.report import Agreement, Answer, Answers, Report, WindowScore
from piston.evaluation.table import change, number, prefix_of, share, shown

_GROUPS = 240  # places of a chart: windows beyond it are averaged with their neighbours


def page_of(report: Report) -> str:
    """The whole document."""
    name = escape(report.candidate.name)
    title = f"{name}: evaluation"
    parts = [*_introduction(report), *_gates(report), *_figures(report), *_perplexity(report)]
    if report.agreement is not None:
        parts += [*_divergence(report.agreement), *_by_context(report.agreement)]
    if report.answers is not None:
        parts += _answers(report.answers)
    parts.append(f'<p class="soft">Written by piston eval, Piston {escape(report.piston)}.</p>')
    return document(title, parts)


def _introduction(report: Report) -> list[str]:
    data = report.data
    scored = f"{data.num_scored:,} of {data.num_tokens:,} tokens scored in {data.num_windows:,} windows."
    intervals = "Intervals in brackets are of 95 % (bootstrap over windows; Wilson for shares)."
    return [
        f"<p><code>{escape(data.path)}</code>: {scored}</p>",
        f'<p class="soft">{escape(data.rule)}; {escape(prefix_of(report))}. {intervals}</p>',
    ]


def _gates(report: Report) -> list[str]:
    if not report.gates:
        return []
    items = [
        f'<li class="gate {"met" if gate.is_met else "not-met"}">{"✓" if gate.is_met else "✗"} '
        f"{'met' if gate.is_met else 'not met'}: {escape(str(gate))}</li>"
        for gate in report.gates
    ]
    return ["<h2>Gates</h2>", "<ul>", *items, "</ul>"]


def _figures(report: Report) -> list[str]:
    models = [model for model in (report.reference, report.candidate) if model is not None]
    heads = ["reference", "candidate"] if report.reference is not None else ["model"]
    rows = [
        ("path", [escape(model.path) for model in models]),
        ("scheme", [escape(model.scheme) for model in models]),
        ("runs as", [escape(model.target) if model.kind == "bundle" else "model directory" for model in models]),
        ("perplexity", [shown(model.perplexity) for model in models]),
        ("nats per token", [shown(model.nll) for model in models]),
        ("bits per byte", ["-" if model.bits_per_byte is None else shown(model.bits_per_byte) for model in models]),
        ("tokens per second read", [f"{model.tokens_per_s:,.0f}" for model in models]),
    ]
    lines = ["<h2>Figures</h2>", *table(["", *heads], rows)]
    if (found := report.agreement) is not None:
        rows = [
            ("perplexity change", [change(found.perplexity_ratio)]),
            ("KL divergence, mean", [f"{shown(found.kl.mean)} nats"]),
            ("KL divergence, p50 / p99 / max", [" / ".join(map(number, (found.kl.p50, found.kl.p99, found.kl.max)))]),
            ("top-1 agreement", [share(found.top1)]),
            ("mean absolute logit difference", [number(found.logit_distance)]),
        ]
        if report.answers is not None:
            rows.append(("equal greedy answers", [share(report.answers.same)]))
        lines += ["<h2>Candidate against reference</h2>", *table(["", "value"], rows)]
    return lines


def _perplexity(report: Report) -> list[str]:
    groups = _grouped(report.windows)
    own = [_mean([window.perplexity for window in group], group) for group in groups]
    series = [Series("candidate", "candidate", own)]
    legend = '<span class="key candidate"></span>candidate'
    if report.reference is not None:
        other = [_mean([window.reference_perplexity or 1.0 for window in group], group) for group in groups]
        series.insert(0, Series("reference", "reference", other))
        legend = f'<span class="key reference"></span>reference &nbsp; {legend}'
    chart = Chart(
        "windows",
        "Perplexity of each window",
        f"{len(report.windows)} windows; the candidate's runs from {number(min(own))} to {number(max(own))}.",
        "window, in order of the text" if len(groups) == len(report.windows) else "windows, averaged with neighbours",
        "perplexity",
    )
    labels = [str(first + 1) for first in range(0, len(report.windows), len(groups[0]))]
    rows = [(label, [number(line.values[index]) for line in series]) for index, label in enumerate(labels)]
    numbers = details(["window", *(line.name for line in series)], rows)
    return figure("Perplexity by window", line_chart(chart, labels, series), legend, numbers)


def _divergence(agreement: Agreement) -> list[str]:
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
    rows = [(f"{edges[index]} to {edges[index + 1]}", [f"{count:,}"]) for index, count in enumerate(counts)]
    numbers = details(["nats", "tokens"], rows)
    return figure("KL divergence of tokens", histogram(chart, edges, counts), caption, numbers)


def _by_context(agreement: Agreement) -> list[str]:
    bins = agreement.by_context
    points = [(100 * item.top1.value, 100 * (item.top1.low or 0), 100 * (item.top1.high or 0)) for item in bins]
    worst = min(bins, key=lambda item: item.top1.value)
    chart = Chart(
        "context",
        "Top-1 agreement by position",
        f"The lowest agreement is {worst.top1.value:.1%}, of tokens with {worst.first_context} to {worst.last_context} "
        f"positions of context.",
        "positions of context before the token",
        "agreement, %",
    )
    labels = [f"{item.first_context}-{item.last_context}" for item in bins]
    caption = "Share of tokens whose likeliest successor is the reference's too, with intervals of 95 %."
    rows = [(label, [share(item.top1), f"{item.num_tokens:,}"]) for label, item in zip(labels, bins, strict=True)]
    numbers = details(["context", "agreement", "tokens"], rows)
    return figure("Agreement by position", range_chart(chart, labels, points), caption, numbers)


def _answers(answers: Answers) -> list[str]:
    parted = [answer for answer in answers.prompts if not answer.is_same]
    equal = [answer for answer in answers.prompts if answer.is_same]
    lines = [
        "<h2>Greedy answers</h2>",
        f"<p>{len(equal)} of {answers.num_prompts} answers of up to {answers.max_tokens} tokens agree whole.</p>",
        *(line for answer in parted for line in _answer(answer)),
    ]
    if equal:
        items = [f"<li><pre>{escape(answer.prompt)}</pre></li>" for answer in equal]
        lines += ["<details><summary>Prompts whose answers agree whole</summary><ul>", *items, "</ul></details>"]
    return lines


def _answer(answer: Answer) -> list[str]:
    found = answer.divergence
    assert found is not None
    common = _num_common(answer.reference_text, answer.candidate_text)
    sides = [
        ("reference", answer.reference_text, found.reference),
        ("candidate", answer.candidate_text, found.candidate),
    ]
    cells = [
        f"<div><h4>{side}: <code>{escape(repr(token.text))}</code>, margin {number(token.margin)} nats</h4>"
        f"<pre>{_highlighted(text, common)}</pre></div>"
        for side, text, token in sides
    ]
    return [
        f"<article><h3><code>{escape(answer.prompt)}</code></h3>",
        f'<p class="soft">The answers part at token {found.position}.</p>',
        '<div class="pair">',
        *cells,
        "</div></article>",
    ]


def _num_common(left: str, right: str) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(left), len(right)))


def _highlighted(text: str, common: int) -> str:
    """The text with the word after the common part marked, or its end."""
    rest = text[common:]
    start = len(rest) - len(rest.lstrip())
    end = start + len((rest.split(maxsplit=1) or [""])[0])
    marked = escape(rest[start:end]) or "(end of the answer)"
    return f"{escape(text[:common] + rest[:start])}<mark>{marked}</mark>{escape(rest[end:])}"


def _grouped(windows: Sequence[WindowScore]) -> list[Sequence[WindowScore]]:
    size = -(-len(windows) // _GROUPS)
    return [windows[start : start + size] for start in range(0, len(windows), size)]


def _mean(perplexities: Sequence[float], group: Sequence[WindowScore]) -> float:
    """Perplexity of several windows together."""
    total = sum(window.num_scored for window in group)
    pairs = zip(perplexities, group, strict=True)
    return math.exp(sum(math.log(value) * window.num_scored for value, window in pairs) / total)
