"""The figures of an evaluation that gates may name, and their values in a report."""

from piston.core.gates import Metric
from piston.evaluation.report import Report

METRICS = {
    metric.name: metric
    for metric in (
        Metric(name="ppl", described="perplexity", percent_of="reference"),
        Metric(name="bpb", described="bits per byte", percent_of="reference"),
        Metric(name="kl", described="mean KL divergence", needs_reference=True),
        Metric(name="kl_p99", described="99th percentile of KL divergence", needs_reference=True),
        Metric(name="kl_max", described="largest KL divergence", needs_reference=True),
        Metric(name="top1", described="top-1 agreement", unit="share", is_better_high=True, needs_reference=True),
        Metric(
            name="answers", described="share of equal answers", unit="share", is_better_high=True, needs_reference=True
        ),
    )
}


def measured(report: Report) -> dict[str, float]:
    """The values of a report by quantity; some exist only with a reference."""
    candidate, reference = report.candidate, report.reference
    values = {"ppl": candidate.perplexity.value}
    if candidate.bits_per_byte is not None:
        values["bpb"] = candidate.bits_per_byte.value
    if reference is not None and report.agreement is not None:
        values["ppl_change"] = report.agreement.perplexity_ratio.value - 1
        if candidate.nll.value == reference.nll.value:
            values["bpb_change"] = 0.0
        elif reference.nll.value > 0:
            values["bpb_change"] = candidate.nll.value / reference.nll.value - 1
        kl = report.agreement.kl
        values |= {"kl": kl.mean.value, "kl_p99": kl.p99, "kl_max": kl.max, "top1": report.agreement.top1.value}
    if report.answers is not None:
        values["answers"] = report.answers.same.value
    return values
