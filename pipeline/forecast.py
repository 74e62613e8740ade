"""What a run would do: the stages, what of them is cached, and the size and memory that the headers imply."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piston.pipeline.cache import read_entry
from piston.pipeline.make import MakeOptions
from piston.pipeline.outputs import check_outputs
from piston.pipeline.parameters import Parameters, count_parameters
from piston.pipeline.plan import Stage, locate, plan
from piston.pipeline.recipe import FLOAT, Recipe

FLOAT_BYTES, HALF_BYTES = 4, 2
WEIGHT_BYTES = {"w8a8": 1.03, "w8": 1.03, "w4": 0.53}  # with scales, per quantized weight
HEAD_BYTES = 1.13  # an lm_head in INT8, in blocks of 32
OVERHEAD = 1_000_000_000  # bytes that torch and the exporter take besides weights (README)
WORK = 700_000_000  # bytes that libraries and activations take where rows are run or graphs compiled
BARE = 80_000_000  # bytes of a runtime without a model


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """One stage; bytes are None where nothing is known of the checkpoint."""

    name: str
    key: str
    is_cached: bool
    num_bytes: int | None  # of what it writes
    peak_bytes: int | None  # memory


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """The plan."""

    recipe: str
    checkpoint: str
    checkpoint_sha256: str | None
    num_parameters: int | None
    bundle: str
    stages: tuple[StageForecast, ...]
    gates: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """For --json."""
        return {**dataclasses.asdict(self), "stages": [dataclasses.asdict(stage) for stage in self.stages]}


def forecast(recipe: Recipe, path: Path, options: MakeOptions) -> Forecast:
    """Plan and predict; raises as `make` does before its first stage."""
    base = path.absolute().parent
    checkpoint = locate(recipe, base, options.checkpoint)
    bundle = base / recipe.output.bundle
    check_outputs(recipe, path, checkpoint, options.pages)
    parameters = count_parameters(Path(checkpoint.source)) if checkpoint.files else None
    return Forecast(
        recipe=str(path),
        checkpoint=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        num_parameters=parameters.total if parameters is not None else None,
        bundle=str(bundle),
        stages=tuple(_stage(stage, recipe, options, parameters) for stage in plan(recipe, base, checkpoint)),
        gates=recipe.gates.all,
    )


def lines_of(found: Forecast) -> Iterator[str]:
    """For people."""
    count = f", {found.num_parameters / 1e6:,.1f} million parameters" if found.num_parameters is not None else ""
    yield f"checkpoint {found.checkpoint}{count}"
    if found.checkpoint_sha256 is not None:
        yield f"           sha256 {found.checkpoint_sha256}"
    for stage in found.stages:
        size = f"about {stage.num_bytes / 1e6:,.0f} MB" if stage.num_bytes else ""
        peak = f"about {stage.peak_bytes / 1e9:.1f} GB of memory" if stage.peak_bytes else ""
        state = "cached" if stage.is_cached else "to do"
        yield f"{stage.name:<10} {state:<7} {stage.key}  {', '.join(part for part in (size, peak) if part)}".rstrip()
    for gate in found.gates:
        yield f"gate       {gate}"
    yield f"bundle     {found.bundle}"


def _stage(stage: Stage, recipe: Recipe, options: MakeOptions, parameters: Parameters | None) -> StageForecast:
    entry = read_entry(options.cache_dir.absolute() / stage.name / stage.key)
    size = peak = None
    if entry is not None:
        size, peak = entry.num_bytes, int(entry.record["peak_bytes"])
    elif parameters is not None:
        size, peak = _predicted(stage.name, recipe, parameters)
    return StageForecast(name=stage.name, key=stage.key, is_cached=entry is not None, num_bytes=size, peak_bytes=peak)


def _predicted(name: str, recipe: Recipe, parameters: Parameters) -> tuple[int | None, int | None]:
    """Bytes on disk and in memory."""
    table = recipe.calibrate or {}
    scheme = str(table.get("scheme", "fp"))
    whole = FLOAT_BYTES * parameters.total
    head = parameters.head or parameters.embedding  # a tied head is stored apart once it is in INT8
    rest = parameters.total - parameters.embedding - parameters.head
    weights = WEIGHT_BYTES.get(scheme, FLOAT_BYTES)
    if name == "export":
        narrow = recipe.export.get("dtype") in {"fp16", "bf16"}
        return (whole // 2 if narrow else whole), 3 * whole + OVERHEAD
    if name == "calibrate":
        return int(rest * weights + FLOAT_BYTES * (parameters.embedding + parameters.head)), 3 * whole + WORK
    engine = whole if scheme == "fp" else int(rest * weights + FLOAT_BYTES * parameters.embedding + HEAD_BYTES * head)
    if name == "build":
        return engine * max(len(recipe.build.get("target", ())), 1), 2 * whole + engine + WORK
    if name == "eval":
        return None, engine + (whole if (recipe.eval or {}).get("reference") == FLOAT else 0) + WORK
    return None, engine + BARE
