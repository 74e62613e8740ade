"""Gates: conditions that must hold, such as `ppl<=2%` or `int8>=95%`. Parses their text and judges values.

    METRIC OP BOUND [over baseline]

The metric decides what a percentage means: a share, an increase over the reference's figure (`ppl<=2%`), or a share of
the baseline's figure (`tpot.p50<=105%`, also written `tpot.p50<=5% over baseline`). Of a share that the reference has,
too, a signed percentage is the change from the reference's: `accuracy>=-0.5%`, while `accuracy>=90%` bounds the share.
The packages that measure figures declare the metrics and pass them in as a table.
"""

import argparse
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from piston.core.console import note
from piston.core.errors import MisuseError, ShortfallError
from piston.core.units import EXAMPLES, Unit, factor_of, shown

Whole = Literal["reference", "baseline"]
_EXPRESSION = re.compile(
    r"\s*(?P<name>[A-Za-z0-9_.]+)\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?P<number>[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?)\s*(?P<unit>%|tokens/s|requests/s|[A-Za-z]*)"
    r"(?P<over>\s+over\s+baseline)?\s*"
)
_QUANTILE = re.compile(r"\.p\d+$")
_OPPOSITE = {">": "<=", ">=": "<", "<": ">=", "<=": ">"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure that gates may name."""

    name: str
    described: str
    unit: Unit = ""
    is_better_high: bool = False
    percent_of: Whole | None = None  # what a percentage refers to, where the figure is not a share
    needs_reference: bool = False  # cannot be measured on one model alone

    @property
    def has_signed_change(self) -> bool:
        """Whether a signed percentage bounds its change from the reference's, as an unsigned one bounds the share."""
        return self.unit == "share" and self.percent_of == "reference"


M = TypeVar("M", bound=Metric)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """The verdict on one gate at one place, with the measured value."""

    expression: str
    value: float | None  # None where it was not measured
    is_met: bool
    message: str
    place: str | None = None  # the setting or the stage, where a report has several
    p_value: float | None = None  # chance of so large a change between equal runs; None where nothing was compared
    false_alarm: float | None = None  # chance that this gate fails for two equal systems with this noise

    def __str__(self) -> str:
        return f"{'' if self.place is None else f'{self.place}: '}{self.expression}: {self.message}"


class MissedGateError(ShortfallError):
    """A result that misses a gate; `gates` has the verdict on each."""

    def __init__(self, message: str, gates: Sequence[GateResult]) -> None:
        super().__init__(message)
        self.gates = tuple(gates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate(Generic[M]):
    """A condition that must hold."""

    text: str
    metric: M
    sign: str
    bound: float  # in the metric's unit; of a change 0.02 for 2 %
    change_of: Whole | None = None  # what the change is relative to

    @property
    def quantity(self) -> str:
        """The name of the measured value: the metric's, or `ppl_change` where a change is bounded."""
        return self.metric.name if self.change_of is None else f"{self.metric.name}_change"

    @property
    def needs_reference(self) -> bool:
        """Whether it needs a second model to compare with."""
        return self.metric.needs_reference or self.change_of == "reference"

    def holds(self, value: float) -> bool:
        """Whether the condition holds; never for NaN."""
        return {
            "<=": value <= self.bound,
            ">=": value >= self.bound,
            "<": value < self.bound,
            ">": value > self.bound,
        }[self.sign]

    def judge(self, values: Mapping[str, float]) -> GateResult:
        """The verdict on values by quantity; a gate whose value was not measured is not met."""
        value = values.get(self.quantity)
        if value is None:
            return GateResult(
                expression=self.text, value=None, is_met=False, message=f"{self.metric.described} was not measured"
            )
        return GateResult(
            expression=self.text,
            value=value if math.isfinite(value) else None,
            is_met=self.holds(value),
            message=self.describe(value),
        )

    def describe(self, value: float) -> str:
        """The measured value in words."""
        if self.change_of is not None:
            side = "above" if value >= 0 else "below"
            return f"{self.metric.described} is {abs(value):.2%} {side} the {self.change_of}'s"
        verb = "" if self.metric.unit == "verdict" else "is "
        return f"{self.metric.described} {verb}{shown(value, self.metric.unit)}"


def parse_gate(text: str, metrics: Mapping[str, M], source: str = "--require") -> Gate[M]:
    """Parse one condition on a figure of the table `metrics`; `source` names the option in messages.

    Raises:
        MisuseError: it is malformed, names an unknown figure, has a wrong unit, or would refuse better values.
    """
    match = _EXPRESSION.fullmatch(text)
    metric = None if match is None else metrics.get(match["name"])
    given = f"{source} {text!r}"
    is_signed = match is not None and match["number"][0] in "-+"
    if match is None or metric is None or (is_signed and not metric.has_signed_change):
        names = ", ".join(dict.fromkeys(_QUANTILE.sub("", name) for name in metrics))
        raise MisuseError(
            f"Cannot read {given}: write a condition that must hold, such as {_example(metrics)!r}; the figures are "
            f"{names}."
        )
    name, sign, number, unit = match["name"], match["sign"], float(match["number"]), match["unit"]
    better = ">" if metric.is_better_high else "<"
    if sign[0] != better:
        rest = f"{match['number']}{unit}{match['over'] or ''}"
        raise MisuseError(f"{given} would refuse better values; write what must hold: {name}{better}={rest}.")
    change_of: Whole | None = None
    if is_signed and unit != "%":
        raise MisuseError(_wrong_unit(given, metric))
    if match["over"] or is_signed or (unit == "%" and metric.unit != "share"):
        change_of = metric.percent_of
        bound = _change(given, metric, match, number)
    else:
        factor = 0.01 if unit == "%" else factor_of(metric.unit, unit)
        if factor is None:
            raise MisuseError(_wrong_unit(given, metric))
        bound = number / 100 if unit == "%" else number * factor  # 95 * 0.01 is more than 0.95
    if not math.isfinite(bound):
        raise MisuseError(f"{given}: {match['number']} is too large; write a smaller number.")
    if metric.unit == "share" and bound > 1:
        raise MisuseError(f"{given}: a share is at most 1; write {name}{sign}99% or 0.99.")
    return Gate(text=text.strip(), metric=metric, sign=sign, bound=bound, change_of=change_of)


def _wrong_unit(given: str, metric: Metric) -> str:
    change = "-0.5% of the reference's" if metric.has_signed_change else "2% over the reference's"
    more = {"reference": f", or {change}", "baseline": ", or 105% of the baseline's", None: ""}
    return f"{given}: {metric.described} is bounded as {EXAMPLES[metric.unit]}{more[metric.percent_of]}."


def _change(given: str, metric: Metric, match: re.Match[str], number: float) -> float:
    """The bound of a change, 0.05 for `105%` of the baseline, `5% over baseline`, or `5%` over the reference."""
    if metric.percent_of is None or (match["over"] and metric.percent_of != "baseline") or match["unit"] != "%":
        raise MisuseError(_wrong_unit(given, metric))
    if metric.percent_of == "reference" or match["over"]:
        return number / 100
    if number < 100:  # noqa: PLR2004 - percent
        raise MisuseError(
            f"{given} is {number:g} % of the baseline's figure; write {100 + number:g}% or '{number:g}% over baseline'."
        )
    return (number - 100) / 100


def tell_gates(gates: Iterable[GateResult]) -> int:
    """Print every gate that is not met on stderr, with the measured value; return the exit status of the command."""
    missed = [gate for gate in gates if not gate.is_met]
    for gate in missed:
        note(f"gate not met: {gate}")
    return 1 if missed else 0


def _example(metrics: Mapping[str, M]) -> str:
    """A gate on the first figure of the table."""
    metric = next(iter(metrics.values()))
    bound = {"reference": "2%", "baseline": "105%", None: EXAMPLES[metric.unit].partition(" ")[0]}[metric.percent_of]
    return f"{metric.name}{'>=' if metric.is_better_high else '<='}{bound}"


def add_gate_arguments(
    parser: argparse._ActionsContainer, example: str, older: str, *, is_repeatable: bool = True
) -> None:
    """Declare --require, and the older option that it replaces."""
    escaped = example.replace("%", "%%")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="GATE",
        help=f"a condition that must hold, such as {escaped}; repeatable",
    )
    action = "append" if is_repeatable else "store"
    parser.add_argument(older, action=action, metavar="EXPR", help="older spelling of --require")


def gates_of(arguments: argparse.Namespace, metrics: Mapping[str, M], older: str) -> tuple[Gate[M], ...]:
    """The gates given as --require or as the older option, which prints a note; raises MisuseError."""
    value = getattr(arguments, older.removeprefix("--").replace("-", "_"))
    given = [] if value is None else [value] if isinstance(value, str) else value
    return (
        *(parse_gate(text, metrics) for text in arguments.require),
        *from_older(older, given, metrics, "--require"),
    )


def from_older(option: str, given: list[str], metrics: Mapping[str, M], now: str) -> tuple[Gate[M], ...]:
    """Gates in the older spelling of an option; one note on stderr says how to write them as `now`."""
    texts = [_OLDER[option](text, metrics) for text in given]
    pairs = list(zip(given, texts, strict=True))
    sources = [f"{option} {old!r}, which is {now}" if old != new else option for old, new in pairs]
    gates = tuple(parse_gate(text, metrics, source) for text, source in zip(texts, sources, strict=True))
    said = [f"{option} {old!r} is now {now} {new!r}" for old, new in pairs if old != new or option != now]
    if said:
        note(f"an older spelling: {'; '.join(said)}")
    return gates


def _from_failing(text: str, metrics: Mapping[str, Metric]) -> str:
    """Convert `ppl>2%`, which states what fails, to `ppl<=2%`; a percentage was a change over the baseline."""
    match = _EXPRESSION.fullmatch(text)
    if match is None or match["over"]:
        return text
    metric = metrics.get(match["name"])
    over = " over baseline" if match["unit"] == "%" and metric and metric.percent_of == "baseline" else ""
    return f"{match['name']}{_OPPOSITE[match['sign']]}{match['number']}{match['unit']}{over}"


def _from_equality(text: str, metrics: Mapping[str, Metric]) -> str:
    """Convert `ppl=2%` and `top1=95%`, the worst allowed values, to `ppl<=2%` and `top1>=95%`."""
    name, equals, bound = (part.strip() for part in text.partition("="))
    if not equals or name not in metrics or bound.startswith("="):
        return text
    return f"{name}{'>=' if metrics[name].is_better_high else '<='}{bound}"


# Figures that a bundle's manifest records.
SIZE = Metric(name="bundle.size", described="the bundle", unit="bytes")
INT8 = Metric(name="int8", described="the linears' part in INT8", unit="share", is_better_high=True)

# Older option -> conversion of its text to the grammar above.
_OLDER: Mapping[str, Callable[[str, Mapping[str, Metric]], str]] = {
    "--fail-on": _from_failing,
    "--check": _from_equality,
    "--budget": _from_equality,
    "--require-int8": lambda text, _: f"int8>={text}",
}
