"""The figures of a run by the names that gates give them: from the bundle's manifest and what stages printed."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from piston.runtime.errors import Error, MisuseError
from piston.runtime.evaluation.gate import measured
from piston.runtime.evaluation.report import Report as EvalReport
from piston.runtime.manifest import Manifest
from piston.runtime.shape import ShapeError, shaped


def values_of(
    manifest: Manifest, results: Mapping[str, Mapping[str, Any]], baseline: Mapping[str, Any] | None
) -> dict[str, float]:
    """Every figure that was measured; `results` are the stages' JSON objects, `baseline` one of an earlier bench."""
    values = {"verify": float(bool(results["verify"].get("passed")))}
    values["bundle.size"] = float(sum(record.size for record in manifest.files.values()))
    shares = [spec.got["linears"]["int8"] for spec in manifest.engines if "int8" in spec.got.get("linears", {})]
    if shares:
        values["int8"] = float(min(shares))
    if "eval" in results:
        values |= {f"eval.{name}": value for name, value in measured(_eval_report(results["eval"])).items()}
    if "bench" in results:
        values |= _bench_values(results["bench"], baseline)
    return {name: value for name, value in values.items() if math.isfinite(value)}


def read_baseline(path: Path) -> dict[str, Any]:
    """The JSON of an earlier `piston bench`; raises MisuseError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise MisuseError(
            f"Cannot read bench.baseline {path} ({problem}); give what `piston bench --json` printed."
        ) from None
    if not isinstance(data, dict) or not _settings(data):
        raise MisuseError(f"bench.baseline {path} is not what `piston bench --json` printed.")
    return data


def _eval_report(result: Mapping[str, Any]) -> EvalReport:
    try:
        report: EvalReport = shaped(EvalReport, dict(result), whole="the report of piston eval")
    except ShapeError as problem:
        raise Error(f"`piston eval` printed what this version does not read: {problem}.") from None
    return report


def _bench_values(result: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> dict[str, float]:
    """The worst over the settings, absolute and as a change over (or under) the baseline's figure of that setting."""
    from piston.runtime.bench.metrics import METRICS

    found: dict[str, list[float]] = {}
    before = dict(_settings(baseline or {}))
    for setting, metrics in _settings(result):
        for metric, quantiles in metrics.items():
            is_high = metric in METRICS and METRICS[metric].is_better_high
            for quantile, estimate in quantiles.items():
                name = f"bench.{metric}.{quantile}"
                value = float(estimate["value"])
                # Signs are turned so that the largest is the worst.
                found.setdefault(name, []).append(-value if is_high else value)
                old = before.get(setting, {}).get(metric, {}).get(quantile)
                if old is not None and old["value"]:
                    change = value / float(old["value"]) - 1
                    found.setdefault(f"{name}.{'under' if is_high else 'over'}", []).append(
                        -change if is_high else change
                    )
    worst = {name: max(values) for name, values in found.items()}
    return {name: abs(value) if not name.endswith((".over", ".under")) else value for name, value in worst.items()}


def _settings(result: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Of the first system: each setting's name and its metrics, and those of the starts."""
    try:
        system = result["systems"][0]
        settings = [(json.dumps(item["setting"], sort_keys=True), item["metrics"]) for item in system["settings"]]
        return [*settings, ("starts", system["metrics"])]
    except (KeyError, IndexError, TypeError):
        return []
