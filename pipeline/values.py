"""The figures of a run by their names in gates, from the bundle's manifest and the stages' JSON."""

import math
from collections.abc import Mapping
from typing import Any

from piston.core.bundle.manifest import Manifest
from piston.core.errors import Error
from piston.core.schema import SchemaError, validated
from piston.evaluation.metrics import measured
from piston.evaluation.report import Report as EvalReport


def values_of(manifest: Manifest, results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Every figure that was measured; `results` are the stages' JSON objects."""
    values = {"bundle.size": float(sum(record.size for record in manifest.files.values()))}
    if "verify" in results:
        values["verify"] = float(bool(results["verify"].get("passed")))
    shares = [spec.actual["linears"]["int8"] for spec in manifest.engines if "int8" in spec.actual.get("linears", {})]
    if shares:
        values["int8"] = float(min(shares))
    for name in ("eval", "bench"):
        if "values" in results.get(name, {}):  # of a task of encoders
            values |= {f"{name}.{figure}": float(value) for figure, value in results[name]["values"].items()}
            # A gate on `bench.peak` means its median, of which there is one.
            values |= {f"{name}.{figure}.p50": float(value) for figure, value in results[name]["values"].items()}
    if "eval" in results and "values" not in results["eval"]:
        values |= {f"eval.{name}": value for name, value in measured(_eval_report(results["eval"])).items()}
    if "bench" in results and "values" not in results["bench"]:
        values |= _bench_values(results["bench"])
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _eval_report(result: Mapping[str, Any]) -> EvalReport:
    try:
        report: EvalReport = validated(EvalReport, dict(result), whole="the report of piston eval")
    except SchemaError as problem:
        raise Error(f"This version cannot read the JSON of `piston eval`: {problem}.") from None
    return report


def _bench_values(result: Mapping[str, Any]) -> dict[str, float]:
    """The worst value over the settings of the bundle, which is the first system."""
    from piston.bench.metrics import METRICS

    system = result["systems"][0]
    found: dict[str, list[float]] = {}
    for metrics in (system["metrics"], *(item["metrics"] for item in system["settings"])):
        for metric, quantiles in metrics.items():
            for quantile, estimate in quantiles.items():
                found.setdefault(f"bench.{metric}.{quantile}", []).append(float(estimate["value"]))
    return {
        name: (min if METRICS[name.split(".")[1]].is_better_high else max)(values) for name, values in found.items()
    }
