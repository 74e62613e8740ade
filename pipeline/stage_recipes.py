"""Recipes of `piston make` as jobs to time: the commands of `make`, with a separate build for each target."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from piston.bench.job import Job
from piston.core.errors import MisuseError
from piston.pipeline.plan import Checkpoint, Stage, locate, plan, words_for
from piston.pipeline.recipe import Recipe, read_recipe

DEFAULT_TARGET = "ort-cpu"
_TARGET = "--target="


def jobs_of(paths: Sequence[Path], checkpoint: str | None = None) -> list[Job]:
    """The commands of all recipes; a shared command, such as an export, occurs once.

    `checkpoint` is its path on this machine, as for `piston make`.

    Raises:
        MisuseError: a recipe cannot be read, or two have one name.
        Error: the checkpoint is not the one a recipe states.
    """
    stems = [path.stem for path in paths]
    if len(set(stems)) < len(stems):
        raise MisuseError(f"Recipes need different file names; these are {', '.join(stems)}.")
    jobs: dict[str, Job] = {}
    for path in paths:
        for job in _jobs_of(path, checkpoint):
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def _jobs_of(path: Path, override: str | None) -> list[Job]:
    recipe, base = read_recipe(path), path.absolute().parent
    checkpoint = locate(recipe, base, override)
    stages = [stage for stage in plan(recipe, base, checkpoint) if stage.writes]
    names: dict[str, str] = {}
    jobs = []
    for stage in stages:
        for part, target in _parts(stage):
            label = _export_label(part, checkpoint) if stage.name == "export" else f"{path.stem}{target}"
            names[stage.name] = f"{stage.name} {label}"
            jobs.append(
                Job(
                    name=names[stage.name],
                    verb=stage.name,
                    options=part.options,
                    directory=base,
                    reads=names[stage.reads[0]] if stage.reads else None,
                    words=_words(part, recipe, checkpoint),
                )
            )
    return jobs


def _export_label(stage: Stage, checkpoint: Checkpoint) -> str:
    """Checkpoint and options of the export: recipes with the same ones share it."""
    return " ".join([Path(checkpoint.source).name, *(option.lstrip("-") for option in stage.options)])


def _parts(stage: Stage) -> list[tuple[Stage, str]]:
    """Split a build of several targets into one each; with the suffix of its name."""
    if stage.name != "build":
        return [(stage, "")]
    targets = [option for option in stage.options if option.startswith(_TARGET)] or [f"{_TARGET}{DEFAULT_TARGET}"]
    rest = tuple(option for option in stage.options if not option.startswith(_TARGET))
    return [
        (dataclasses.replace(stage, options=(*rest, target)), f" {target.removeprefix(_TARGET)}") for target in targets
    ]


def _words(stage: Stage, recipe: Recipe, checkpoint: Checkpoint) -> Callable[[Path, Path | None], Sequence[str]]:
    return lambda work, read: words_for(stage, recipe, checkpoint, [] if read is None else [read], work)
