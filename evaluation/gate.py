"""Bounds that fail a run, such as `ppl>2%`: text in, a verdict on measured values out. Knows no models."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from piston.core.errors import MisuseError
from piston.evaluation.report import GateResult, Report


class Metric(NamedTuple):
    """A figure that a gate may name. Shares are written 99% or 0.99; `>` fails what is bad when high, `<` the rest."""

    described: str
    fails: str
    is_share: bool = False
    is_relative: bool = False  # a percentage is of the reference's figure
    needs_reference: bool = True


METRICS = {
    "ppl": Metric("perplexity", ">", is_relative=True, needs_reference=False),
    "bpb": Metric("bits per byte", ">", is_relative=True, needs_reference=False),
    "kl": Metric("mean KL divergence", ">"),
    "kl_p99": Metric("99th percentile of KL divergence", ">"),
    "kl_max": Metric("largest KL divergence", ">"),
    "top1": Metric("top-1 agreement", "<", is_share=True),
    "answers": Metric("share of equal answers", "<", is_share=True),
}
_EXPRESSION = re.compile(r"\s*(\w+)\s*(>=|<=|>|<)\s*(\d+(?:\.\d*)?(?:[eE][-+]?\d+)?|\.\d+)\s*(%?)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One bound; the condition states what fails."""

    text: str
    metric: str
    is_inclusive: bool  # the bound itself fails
    bound: float  # a share or a relative change where is_percent, then 0.02 for 2%
    is_percent: bool

    @property
    def quantity(self) -> str:
        """The name of the measured value: the metric's, or `ppl_change` where a change is bounded."""
        return f"{self.metric}_change" if self.is_percent and METRICS[self.metric].is_relative else self.metric

    @property
    def needs_reference(self) -> bool:
        """Whether it bounds something that one model alone does not have."""
        return METRICS[self.metric].needs_reference or self.quantity != self.metric

    def check(self, values: Mapping[str, float]) -> GateResult:
        """Judge the measured values by quantity; NaN fails. Raises MisuseError where the quantity was not measured."""
        if self.quantity not in values:
            raise MisuseError(f"--fail-on {self.text!r}: {METRICS[self.metric].described} was not measured.")
        value, sign = values[self.quantity], 1 if METRICS[self.metric].fails == ">" else -1
        excess = sign * (value - self.bound)
        is_met = excess < 0 or (excess == 0 and not self.is_inclusive)
        return GateResult(expression=self.text, value=value, is_met=is_met, message=self._message(value))

    def _message(self, value: float) -> str:
        described = METRICS[self.metric].described
        if self.quantity != self.metric:
            shown = f"{described} is {abs(value):.2%} {'above' if value >= 0 else 'below'} the reference's"
        else:
            shown = f"{described} is {f'{value:.2%}' if METRICS[self.metric].is_share else f'{value:.4g}'}"
        return f"{self.text}: {shown}"


def parse_gate(text: str) -> Gate:
    """Read `METRIC > NUMBER` or `METRIC < NUMBER`, with an optional % after the number.

    Raises:
        MisuseError: it is no such expression, or one that would fail what is good.
    """
    match = _EXPRESSION.fullmatch(text)
    if match is None or match[1] not in METRICS:
        raise MisuseError(
            f"Cannot read --fail-on {text!r}: write a condition that fails the run, such as 'ppl>2%', 'kl>0.02' or "
            f"'top1<99%'; the figures are {', '.join(METRICS)}."
        )
    name, comparison, number, percent = match.groups()
    metric = METRICS[name]
    if comparison[0] != metric.fails:
        raise MisuseError(
            f"--fail-on {text!r} would fail the better model; write what must not be: "
            f"{name}{metric.fails}{number}{percent}."
        )
    if percent and not (metric.is_share or metric.is_relative):
        raise MisuseError(f"--fail-on {text!r}: {metric.described} has no percentage; write {name}{metric.fails}0.02.")
    bound = float(number) / 100 if percent else float(number)
    if not math.isfinite(bound):
        raise MisuseError(f"--fail-on {text!r}: {number} is beyond every number; write a smaller one.")
    if metric.is_share and bound > 1:
        raise MisuseError(f"--fail-on {text!r}: a share is at most 1; write {name}{metric.fails}99% or 0.99.")
    is_inclusive = comparison.endswith("=")
    return Gate(text=text, metric=name, is_inclusive=is_inclusive, bound=bound, is_percent=bool(percent))


def measured(report: Report) -> dict[str, float]:
    """The values of a report by quantity; those that need a reference are there if it had one."""
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
