"""The report as lines of text."""

from collections.abc import Iterator

from piston.core.statistics import ConfidenceInterval
from piston.evaluation.report import Agreement, Answers, Model, Report

_WIDTH = 26
_LONG, _LONGEST = 1e3, 1e7  # between these values all digits before the point are shown


def lines_of(report: Report) -> Iterator[str]:
    """The whole table."""
    data = report.data
    documents = f" in {data.num_documents:,} documents" if data.num_documents > 1 else ""
    scored = f"{data.num_scored:,} of {data.num_tokens:,} tokens scored"
    yield f"{data.path}: {scored}{documents}, {data.num_windows:,} windows"
    yield data.rule
    yield prefix_of(report)
    yield ""
    yield from _models(report)
    if report.agreement is not None:
        yield ""
        yield from _agreement(report.agreement)
    if report.answers is not None:
        yield from _answers(report.answers)


def shown(estimate: ConfidenceInterval) -> str:
    """A figure with its interval."""
    if estimate.low is None or estimate.high is None:
        return number(estimate.value)
    return f"{number(estimate.value)} [{number(estimate.low)}, {number(estimate.high)}]"


def share(estimate: ConfidenceInterval) -> str:
    """A share with its interval."""
    assert estimate.low is not None
    assert estimate.high is not None
    return f"{estimate.value:.2%} [{estimate.low:.2%}, {estimate.high:.2%}]"


def change(ratio: ConfidenceInterval) -> str:
    """A ratio as a relative change, with its interval."""
    added = f"{ratio.value - 1:+.2%}"
    if ratio.low is None or ratio.high is None:
        return added
    return f"{added} [{ratio.low - 1:+.2%}, {ratio.high - 1:+.2%}]"


def number(value: float) -> str:
    """Four significant digits, without exponent where that is short."""
    return f"{value:,.1f}" if _LONG <= abs(value) < _LONGEST else f"{value:.4g}"


def prefix_of(report: Report) -> str:
    """Describes the tokens in front of every window."""
    ids = report.data.prefix_ids
    if not ids:
        return "text encoded once; the tokenizer prepends nothing, so the first token is context only"
    return (
        f"text encoded once; the tokenizer's token{'s' * (len(ids) > 1)} {', '.join(map(str, ids))} before every window"
    )


def _models(report: Report) -> Iterator[str]:
    """A column for each model."""
    columns: list[tuple[str, ...]] = [("", "model", "perplexity", "nats per token", "bits per byte", "tokens/s read")]
    if report.reference is not None:
        columns += [_column("reference", report.reference), _column("candidate", report.candidate)]
    else:
        columns.append(_column("", report.candidate))
    widths = [_WIDTH, *(max(map(len, column)) + 2 for column in columns[1:])]
    for cells in zip(*columns, strict=True):
        line = "".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip()
        if line:
            yield line


def _column(head: str, model: Model) -> tuple[str, ...]:
    bits = "-" if model.bits_per_byte is None else shown(model.bits_per_byte)
    return head, _name(model), shown(model.perplexity), shown(model.nll), bits, f"{model.tokens_per_s:,.0f}"


def _agreement(agreement: Agreement) -> Iterator[str]:
    kl = agreement.kl
    yield _row("perplexity change", change(agreement.perplexity_ratio))
    yield _row("KL, nats", f"{shown(kl.mean)}, p50 {number(kl.p50)}, p99 {number(kl.p99)}, max {number(kl.max)}")
    yield _row("top-1 agreement", share(agreement.top1))
    yield _row("mean |logit difference|", number(agreement.logit_distance))


def _answers(answers: Answers) -> Iterator[str]:
    num_same = sum(answer.is_same for answer in answers.prompts)
    yield _row("equal greedy answers", f"{num_same} of {answers.num_prompts}, up to {answers.max_tokens} tokens each")
    for index, answer in enumerate(answers.prompts, 1):
        if (found := answer.divergence) is not None:
            yield (
                f"  prompt {index} differs at token {found.position}: "
                f"{found.reference.text!r} (margin {number(found.reference.margin)}) became "
                f"{found.candidate.text!r} (margin {number(found.candidate.margin)}) | {answer.prompt!r:.60}"
            )


def _name(model: Model) -> str:
    form = f"{model.scheme}, {model.target}" if model.kind == "bundle" else f"{model.scheme}, model directory"
    return f"{model.name} ({form})"


def _row(label: str, cell: str) -> str:
    return f"{label:<{_WIDTH}}{cell}"
