"""Reads a report from its JSON. The file is not trusted: anything malformed is refused in one line."""

from pathlib import Path
from typing import Any

import numpy as np

from piston.bench.fingerprint import Fingerprint
from piston.bench.load.run import LoadRun, Sent
from piston.bench.load.setting import LoadSetting
from piston.bench.report import Measured, MeasuredLoad, MeasuredStage, Options, Report, Run, StageRun, Start, System
from piston.bench.workload import Setting
from piston.core.bundle.manifest import TEXT_GENERATION
from piston.core.errors import MisuseError
from piston.core.schema import SchemaError, validated
from piston.core.statistics import ConfidenceInterval


def report_from(data: Any, path: Path) -> Report:
    """Read machine, options and every system, which a comparison needs; ratios, gates and profile are left out.

    Raises:
        MisuseError: it is not a report, has another schema, or impossible runs.
    """
    try:
        if data["schema"] != 1:
            raise MisuseError(
                f"--baseline {path} has schema {data['schema']!r}, but this Piston reads 1; measure it again."
            )
        report = Report(
            machine=_machine(data["machine"]),
            options=Options(**{name: int(data["options"][name]) for name in Options.__slots__}),
            systems=tuple(_system(item) for item in data["systems"]),
            piston=str(data["piston"]),
            date=str(data["date"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, SchemaError) as problem:
        if isinstance(problem, MisuseError):
            raise
        raise MisuseError(f"--baseline {path} is not a report of `piston bench --json`; measure it again.") from None
    if not report.systems or not (report.systems[0].measured or report.systems[0].stages):
        raise MisuseError(f"--baseline {path} holds no measurement; measure it again.")
    return report


def _machine(data: dict[str, Any]) -> Fingerprint:
    named = {name: data[name] for name in Fingerprint.__slots__}
    versions = {str(name): str(value) for name, value in named.pop("versions").items()}
    return Fingerprint(**named | {"versions": versions, "instructions": tuple(map(str, named["instructions"]))})


def _system(data: dict[str, Any]) -> System:
    return System(
        name=str(data["name"]),
        kind=str(data["kind"]),
        path=str(data["path"]),
        digest=data["digest"],
        versions={str(name): str(value) for name, value in data["versions"].items()},
        starts=tuple(Start(**{name: _positive(item[name]) for name in Start.__slots__}) for item in data["starts"]),
        metrics=_metrics(data["metrics"]),
        settings=tuple(_measured(item) for item in data["settings"]),
        stages=tuple(_stage(item) for item in data.get("stages", ())),  # older reports have none
        loads=tuple(_load(item) for item in data.get("loads", ())),
        size_bytes=None if data.get("size_bytes") is None else int(_positive(data["size_bytes"])),
    )


def _load(data: dict[str, Any]) -> MeasuredLoad:
    setting: LoadSetting = validated(LoadSetting, data["setting"])
    runs: tuple[LoadRun, ...] = tuple(validated(LoadRun, item) for item in data["runs"])
    if not runs or (setting.concurrency is None) == (setting.rate is None) or not all(map(_is_possible, runs)):
        raise ValueError("impossible runs")
    return MeasuredLoad(
        setting=setting, runs=runs, metrics=_metrics(data["metrics"]), client_limit=data.get("client_limit")
    )


def _is_possible(run: LoadRun) -> bool:
    """Whether times are finite and go up, and an answer has tokens."""
    return 0 < run.seconds < float("inf") and bool(run.sent) and all(map(_is_answer, run.sent))


def _is_answer(sent: Sent) -> bool:
    times = np.asarray(sent.times, np.float64)
    if not len(times):
        return sent.problem is not None
    return bool(np.isfinite(times).all() and (np.diff(times) >= 0).all() and times[0] >= 0 and sent.num_tokens > 0)


def _stage(data: dict[str, Any]) -> MeasuredStage:
    runs = tuple(StageRun(**{name: _positive(item[name]) for name in StageRun.__slots__}) for item in data["runs"])
    if not runs:
        raise ValueError("a stage without runs")
    return MeasuredStage(
        name=str(data["name"]),
        verb=str(data["verb"]),
        options=tuple(map(str, data["options"])),
        runs=runs,
        metrics=_metrics(data["metrics"]),
    )


def _measured(data: dict[str, Any]) -> Measured:
    setting = data["setting"]
    numbers: dict[str, Any] = {name: int(setting[name]) for name in ("batch", "prompt_len", "gen_len")}
    newer = {"task": str, "num_beams": int, "audio": float}  # fields that older reports do not have
    more: dict[str, Any] = {name: kind(setting[name]) for name, kind in newer.items() if name in setting}
    named = Setting(**numbers, prompts=setting["prompts"], neighbours=int(setting.get("neighbours", 0)), **more)
    runs = tuple(_run(item, named) for item in data["runs"])
    if not runs:
        raise ValueError("a setting without runs")
    return Measured(setting=named, runs=runs, metrics=_metrics(data["metrics"]))


def _run(data: dict[str, Any], setting: Setting) -> Run:
    times, gen_len = tuple(_positive(value) for value in data["times"]), setting.gen_len
    parts = {str(name): float(value) for name, value in data["parts"].items()}
    is_wrong = not times or bool((np.diff(times) < 0).any()) or not np.isfinite(list(parts.values())).all()
    if setting.audio:
        is_wrong = is_wrong or not (parts["audio"] > 0 <= parts["encode"] < times[-1] and parts["tokens"] >= 0)
    else:
        is_wrong = is_wrong or len(times) != gen_len or (gen_len > 1 and times[-1] == times[0])
        is_wrong = is_wrong or (setting.task != TEXT_GENERATION and not parts["encode"] > 0)
    if is_wrong:
        raise ValueError("impossible times")
    return Run(prompt_len=int(data["prompt_len"]), times=times, parts=parts)


def _metrics(data: dict[str, Any]) -> dict[str, dict[str, ConfidenceInterval]]:
    return {
        str(name): {str(quantile): ConfidenceInterval(**values) for quantile, values in quantiles.items()}
        for name, quantiles in data.items()
    }


def _positive(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"{value!r} is not a positive number")
    return value
