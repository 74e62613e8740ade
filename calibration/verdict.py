"""The verdict on a quantization: what it saves, what it costs, and whether that is worth having, in one table."""

from dataclasses import dataclass
from typing import Any

from piston.calibration.check import Check, bounds_of
from piston.calibration.result import Calibrated
from piston.evaluation.metrics import measured
from piston.evaluation.table import number

WORTH = 0.05  # of the bytes: what saves less is not worth another model to look after
SPEED = "tokens/s: not measured by calibrate; build both and compare them with `piston bench`"
ON_GPUS = "TensorRT may multiply by them faster, on GPUs from compute capability 8.0 on"
FLOAT_ZEROS = f"2:4 zeros take as many bytes as other weights in float; {ON_GPUS}"
ZEROS = (
    "2:4 zeros take as many bytes as other weights in this directory; --target ort-cpu:avx512 stores 5/8 of the bytes "
    f"of INT8 weights and 3/4 of INT4's, and decodes faster; {ON_GPUS}"
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The rows of the table, and what to make of them."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    saved: float  # share of the float weights' bytes
    is_worth_it: bool
    reason: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {
            "saved": self.saved,
            "is_worth_it": self.is_worth_it,
            "reason": self.reason,
            "table": [dict(zip(self.heads, row, strict=True)) for row in self.rows],
            "notes": list(self.notes),
        }

    @property
    def lines(self) -> list[str]:
        """As text, columns aligned."""
        table = [self.heads, *self.rows]
        widths = [max(len(row[column]) for row in table) for column in range(len(self.heads))]
        aligned = [
            "  ".join(
                cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in enumerate(cells)
            )
            for cells in (list(zip(row, widths, strict=True)) for row in table)
        ]
        state = "kept" if self.is_worth_it else "not worth it"
        return [*aligned, f"verdict: {state}, {self.reason}", *self.notes]


def verdict_of(result: Calibrated) -> Verdict:
    """Of a calibration that passed its check.

    Worth having is what saves enough bytes and stays within the scheme's default limit, whatever limit was asked for.
    """
    size, scheme = result.size, result.manifest.model.scheme
    saved = 1 - size.actual / size.whole
    is_sparse = bool(result.recipe.sparsity)
    name = f"{scheme}, 2:4 sparse" if is_sparse else scheme
    megabytes = (f"{size.whole / 1e6:,.1f}", f"{size.actual / 1e6:,.1f}")
    heads, float_row, own_row, cost = _quality(result)
    rows = (("float", megabytes[0], *float_row), (name, megabytes[1], *own_row))
    change = f"{saved:.0%} fewer bytes" if saved >= 0 else f"{-saved:.0%} more bytes"
    missed = _missed_default(result)
    beyond = f", beyond the default limit of {result.recipe.scheme} ({missed})" if missed else ""
    reason, is_worth_it = f"{change} for {cost}{beyond}", saved >= WORTH and not missed
    zeros = FLOAT_ZEROS if scheme.partition("+")[0] == "fp" else ZEROS
    notes = (SPEED, zeros) if is_sparse else (SPEED,)
    return Verdict(("", "weights, MB", *heads), rows, saved, is_worth_it, reason, notes)


def _missed_default(result: Calibrated) -> str | None:
    """The scheme's default limit where the result is beyond it, such as "ppl<=2%"."""
    found = result.check
    measurements = (
        [measured(report) for report in found.reports] if isinstance(found, Check) else [found.comparison.values]
    )
    (gate,) = bounds_of([], result.recipe.scheme, result.manifest.task)
    return None if all(gate.judge(values).is_met for values in measurements) else gate.text


def _quality(result: Calibrated) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...], str]:
    """Heads, the float model's cells, the quantized one's, and the cost in words."""
    if not isinstance(result.check, Check):
        values = result.check.comparison.values
        cells = tuple(number(value) for value in values.values())
        return tuple(values), ("",) * len(cells), cells, result.check.comparison.summary
    report = result.check.near
    found, reference = report.agreement, report.reference
    assert found is not None
    assert reference is not None
    change = found.perplexity_ratio.value - 1
    own = (
        f"{report.candidate.perplexity.value:.2f}",
        f"{change:+.2%}",
        number(found.kl.mean.value),
        f"{found.top1.value:.1%}",
    )
    heads = ("perplexity", "change", "KL, nats", "top-1")
    return heads, (f"{reference.perplexity.value:.2f}", "", "", ""), own, f"{change:+.2%} perplexity"
