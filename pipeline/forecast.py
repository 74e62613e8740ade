"""What a run would do: its stages, which of them are cached, and what the cached ones took."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from piston.core.units import shown
from piston.pipeline.cache import read_entry
from piston.pipeline.make import MakeOptions
from piston.pipeline.outputs import check_outputs
from piston.pipeline.plan import Stage, locate, plan
from piston.pipeline.recipe import Recipe
from piston.pipeline.task_checks import check_files


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageForecast:
    """One stage; bytes are those of the cached run, None without one."""

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
    bundle: str
    stages: tuple[StageForecast, ...]
    gates: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON."""
        return {**dataclasses.asdict(self), "stages": [dataclasses.asdict(stage) for stage in self.stages]}


def forecast(recipe: Recipe, path: Path, options: MakeOptions) -> Forecast:
    """Plan; raises as `make` does before its first stage."""
    base = path.absolute().parent
    checkpoint = locate(recipe, base, options.checkpoint)
    bundle = base / recipe.output.bundle
    check_outputs(recipe, path, checkpoint, options.pages)
    check_files(recipe, base)
    return Forecast(
        recipe=str(path),
        checkpoint=checkpoint.source,
        checkpoint_sha256=checkpoint.sha256,
        bundle=str(bundle),
        stages=tuple(_stage(stage, options) for stage in plan(recipe, base, checkpoint)),
        gates=recipe.gates.all,
    )


def lines_of(found: Forecast) -> Iterator[str]:
    """The plan as text."""
    yield f"checkpoint {found.checkpoint}"
    if found.checkpoint_sha256 is not None:
        yield f"           sha256 {found.checkpoint_sha256}"
    for stage in found.stages:
        size = shown(stage.num_bytes, "bytes") if stage.num_bytes else ""
        peak = f"{shown(stage.peak_bytes, 'bytes')} of memory" if stage.peak_bytes else ""
        state = "cached" if stage.is_cached else "to do"
        yield f"{stage.name:<10} {state:<7} {stage.key}  {', '.join(part for part in (size, peak) if part)}".rstrip()
    for gate in found.gates:
        yield f"gate       {gate}"
    yield f"bundle     {found.bundle}"


def _stage(stage: Stage, options: MakeOptions) -> StageForecast:
    entry = read_entry(options.cache_dir.absolute() / stage.name / stage.key)
    return StageForecast(
        name=stage.name,
        key=stage.key,
        is_cached=entry is not None,
        num_bytes=None if entry is None else entry.num_bytes,
        peak_bytes=None if entry is None else int(entry.record["peak_bytes"]),
    )
