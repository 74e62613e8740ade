"""What a bundle must be to be published: `bundle.size <= 200MB` and the like. Text in, a verdict on values out.

verify                               the answers that travel in the bundle
bundle.size <= 200MB                 all files
int8 >= 95%                          of the linear layers' multiply-adds, in every engine that counts them
eval.ppl <= 2%                       over the reference; `eval.ppl <= 30` is absolute; kl, top1, ... as in piston eval
bench.tpot.p50 <= 20ms               at every setting that was measured
bench.tpot.p50 <= 5% over baseline   by the test of `piston bench --fail-on`: see changes.py
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from piston.core.errors import MisuseError
from piston.evaluation.gate import METRICS as EVAL_METRICS

UNITS = {
    "": 1.0,
    "%": 1.0,
    "B": 1.0,
    "kB": 1e3,
    "MB": 1e6,
    "GB": 1e9,
    "KiB": 2.0**10,
    "MiB": 2.0**20,
    "GiB": 2.0**30,
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "tokens/s": 1.0,
}
_EXPRESSION = re.compile(
    r"(?P<name>[a-z0-9_.]+) *(?P<sign><=|>=|<|>) *(?P<number>\d+(?:\.\d*)?|\.\d+) *(?P<unit>%|tokens/s|[A-Za-z]*)"
    r"(?P<change> +over +baseline)?"
)
_EXAMPLES = "'verify', 'bundle.size <= 200MB', 'int8 >= 95%', 'eval.ppl <= 2%', 'bench.tpot.p50 <= 5% over baseline'"
Sign = Literal["<=", ">=", "<", ">"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A condition that must hold."""

    text: str
    name: str  # of the value, as `values` has it
    sign: Sign = ">="
    bound: float = 1.0
    stage: str = "verify"  # where the value comes from
    is_change: bool = False  # over bench.baseline

    def judge(self, values: Mapping[str, float]) -> "GateResult":
        """The verdict; what was not measured, and NaN, is not met."""
        value = values.get(self.name)
        if value is None:
            return GateResult(expression=self.text, value=None, is_met=False, message=f"{self.name} was not measured")
        is_met = {
            "<=": value <= self.bound,
            ">=": value >= self.bound,
            "<": value < self.bound,
            ">": value > self.bound,
        }[self.sign]
        return GateResult(
            expression=self.text,
            value=value if math.isfinite(value) else None,
            is_met=is_met,
            message=_measured(self.name, value),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GateResult:
    """One gate and the value it was judged by."""

    expression: str
    value: float | None
    is_met: bool
    message: str


def parse_gate(text: str) -> Gate:
    """Read one condition. Raises MisuseError for what is none, or names no figure."""
    if text.strip() == "verify":
        return Gate(text=text, name="verify")
    match = _EXPRESSION.fullmatch(text.strip())
    if match is None or match["unit"] not in UNITS:
        raise MisuseError(f"cannot read the gate {text!r}; gates are written as {_EXAMPLES}.")
    name, unit = match["name"], match["unit"]
    _check_unit(text, name, unit, is_change=bool(match["change"]))
    if match["change"] and match["sign"] != "<=":
        raise MisuseError(f"{text!r}: a change over the baseline is bounded from above; write <=.")
    number = float(match["number"])
    number = number / 100 if unit == "%" else number * UNITS[unit]  # 95 * 0.01 is more than 0.95
    if not math.isfinite(number):
        raise MisuseError(f"the bound of the gate {text!r} is beyond every number.")
    stage = name.partition(".")[0] if name.startswith(("eval.", "bench.")) else "build"
    is_change = bool(match["change"])
    if is_change:
        name = f"{name}.over"
    elif unit == "%" and name.startswith("eval.") and EVAL_METRICS[name[5:]].is_relative:
        name = f"{name}_change"
    return Gate(text=text, name=name, sign=match["sign"], bound=number, stage=stage, is_change=is_change)  # type: ignore[arg-type]


def _check_unit(text: str, name: str, unit: str, *, is_change: bool) -> None:
    """Refuse a figure that does not exist and a unit that it does not have."""
    if is_change and (not name.startswith("bench.") or unit != "%"):
        raise MisuseError(f"{text!r} compares with a baseline, which is written as bench.FIGURE <= N% over baseline.")
    if name == "bundle.size":
        good = unit.endswith("B")
    elif name == "int8":
        good = unit == "%"
    elif name.startswith("eval."):
        metric = EVAL_METRICS.get(name[5:])
        good = metric is not None and (unit == "" or (unit == "%" and (metric.is_share or metric.is_relative)))
    elif name.startswith("bench."):
        good = _is_bench_unit(name, unit, is_change=is_change)
    else:
        good = False
    if not good:
        raise MisuseError(f"the gate {text!r} names no figure in its unit; gates are written as {_EXAMPLES}.")


def _is_bench_unit(name: str, unit: str, *, is_change: bool) -> bool:
    from piston.bench.metrics import METRICS
    from piston.core.statistics import PERCENTS

    _, metric, quantile = [*name.split("."), "", ""][:3]
    if metric not in METRICS or quantile not in {f"p{percent}" for percent in PERCENTS}:
        return False
    if is_change:  # of a figure that is better when low, as there are in `piston bench --fail-on`
        return not METRICS[metric].is_better_high
    return {"s": unit in {"s", "ms", "us"}, "bytes": unit.endswith("B"), "tokens/s": unit == "tokens/s"}[
        METRICS[metric].unit
    ]


def _measured(name: str, value: float) -> str:
    """A value in words; a change says of what."""
    if name.endswith("_change"):
        return f"{abs(value):.2%} {'above' if value >= 0 else 'below'} the reference"
    return shown_value(name, value)


def shown_value(name: str, value: float) -> str:
    """A value in the unit of its figure."""
    if name == "verify":
        return "passed" if value else "failed"
    if name == "bundle.size":
        return shown_bytes(value)
    if name == "int8" or name.endswith((".over", "_change")) or name in {"eval.top1", "eval.answers"}:
        return f"{value:.2%}"
    return f"{value:.4g}"


def shown_bytes(count: float) -> str:
    """Bytes as MB, or kB where there are few."""
    return f"{count / 1e6:,.1f} MB" if count >= UNITS["MB"] / 10 else f"{count / 1e3:,.1f} kB"
