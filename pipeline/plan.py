"""The stages of a recipe in order, with the hash of all inputs of each. Runs nothing."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.checkpoint.task import task_of as task_of_checkpoint
from piston.core.bundle.manifest import Manifest
from piston.core.cache_dir import expand_user
from piston.core.errors import BundleError, Error, MisuseError
from piston.pipeline.cache_key import (
    code_of,
    digest_of,
    digest_of_files,
    files_of_checkpoint,
    hashed_files,
    machine,
    tools_of,
)
from piston.pipeline.options import words_of
from piston.pipeline.recipe import FLOAT, VERIFY, Recipe
from piston.pipeline.task_checks import check_task

_COMMIT = re.compile(r"[0-9a-f]{40}")
KEY_LENGTH = 32  # hex digits of the SHA-256 in the name of an entry
EVAL_PAGE = "eval.html"
WRITERS = ("export", "calibrate", "build")  # verbs that write a directory; the others print


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """The checkpoint of a recipe: a path on this machine with its files' hashes, or a hub id at a commit.

    `is_exported` where it is a model directory, as `export_module` writes: then there is no export.
    """

    source: str
    files: Mapping[str, str]  # empty for a hub id
    revision: str | None = None
    is_exported: bool = False

    @property
    def reads(self) -> list[Path]:
        """The path that the export reads; None for a hub id."""
        return [Path(self.source)] if self.files else []

    @property
    def sha256(self) -> str | None:
        """The hash as a recipe states it; None for a hub id."""
        return digest_of_files(dict(self.files)) if self.files else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One command; `reads` are the stages whose output it takes, the first one as its argument."""

    name: str
    key: str
    reads: tuple[str, ...]
    options: tuple[str, ...]
    tools: Mapping[str, str]
    files: Mapping[str, str]  # SHA-256 of the files that its options name

    @property
    def writes(self) -> bool:
        """Whether it writes a directory."""
        return self.name in WRITERS


def locate(recipe: Recipe, base: Path, override: str | None = None) -> Checkpoint:
    """Find the checkpoint and check it against the recipe; a hub id is left to the export.

    Raises:
        MisuseError: it does not exist, or a revision is not a commit.
        Error: its hash is not the recipe's.
    """
    stated = recipe.checkpoint
    path = Path(override) if override is not None else base / expand_user(stated.source)
    if stated.revision is not None and override is None:
        if _COMMIT.fullmatch(stated.revision) is None:
            raise MisuseError(
                f"checkpoint.revision {stated.revision!r} is not a commit; give its forty hexadecimal digits."
            )
        return Checkpoint(source=stated.source, files={}, revision=stated.revision)
    if stated.sha256 is None and stated.revision is not None:
        raise MisuseError(
            "--checkpoint cannot be used with a hub id, which has no checkpoint.sha256 to check it by; leave it out."
        )
    # A file keeps its own name: the hub's cache links model.gguf to a blob that is named by its hash.
    place = path.parent.resolve() / path.name if path.is_file() else path.resolve()
    found = Checkpoint(source=str(place), files=files_of_checkpoint(path), is_exported=_is_exported(path))
    if stated.sha256 is not None and found.sha256 != stated.sha256:  # None: `--dry-run` prints the hash to state
        raise Error(
            f"The checkpoint {path} has SHA-256 {found.sha256}, the recipe states {stated.sha256}; use the checkpoint "
            "that the recipe names, or correct checkpoint.sha256."
        )
    if found.is_exported and recipe.export:
        raise MisuseError(f"{path} is a model directory, which is exported already; leave [export] out.")
    return found


def plan(recipe: Recipe, base: Path, checkpoint: Checkpoint) -> tuple[Stage, ...]:
    """The stages that the recipe asks for, in the order in which they run.

    Raises:
        MisuseError: a stage, an option or a gate is not for the task, where that is known before the export.
    """
    check_task(recipe, task_of(recipe, checkpoint))
    origin: Mapping[str, Any] = checkpoint.files or {"hub": checkpoint.source, "commit": checkpoint.revision}
    more = {"checkpoint": origin, "name": Path(checkpoint.source).name}  # of the first stage
    writers = [*([] if checkpoint.is_exported else ["export"]), *([] if recipe.calibrate is None else ["calibrate"])]
    stages: list[Stage] = []
    for verb in (*writers, "build"):
        stages.append(_stage(recipe, base, verb, stages[-1:], None if stages else more))
    build = stages[-1:]
    if VERIFY not in recipe.gates.skip:
        stages.append(_stage(recipe, base, "verify", build, machine()))
    if recipe.eval is not None:
        uses_float = recipe.eval.get("reference") == FLOAT and not checkpoint.is_exported
        stages.append(_stage(recipe, base, "eval", [*build, *(stages[:1] if uses_float else [])], machine()))
    if recipe.bench is not None:
        stages.append(_stage(recipe, base, "bench", build, machine()))
    return tuple(stages)


def task_of(recipe: Recipe, checkpoint: Checkpoint) -> str | None:
    """What the bundle will be for; None where only the export finds it out, of a hub id without export.task."""
    if checkpoint.is_exported:
        return Manifest.read(Path(checkpoint.source)).task
    stated: str | None = recipe.export.get("task")
    return stated or (task_of_checkpoint(Path(checkpoint.source)) if checkpoint.files else None)


def words_for(stage: Stage, recipe: Recipe, checkpoint: Checkpoint, outputs: Sequence[Path], work: Path) -> list[str]:
    """The command line of a stage, given the outputs of the stages that it reads; it writes to `work`.

    The first stage reads the checkpoint.
    """
    outputs = outputs or [Path(checkpoint.source)]
    if stage.name == "export":
        revision = [f"--revision={checkpoint.revision}"] if checkpoint.revision is not None else []
        return ["export", *stage.options, *revision, f"--output={work / 'model'}", "--", checkpoint.source]
    words = [stage.name, *stage.options]
    if any(option.startswith("--target=tensorrt") for option in stage.options) and stage.name == "build":
        words.append("--no-cache")  # the cache of `piston make` holds the whole bundle
    if stage.writes:
        words.append(f"--output={work / ('bundle' if stage.name == 'build' else 'model')}")
    if stage.name == "eval":
        words.append(f"--html={work / EVAL_PAGE}")
        if recipe.eval is not None and recipe.eval.get("reference") == FLOAT:
            words.append(f"--reference={outputs[1] if len(outputs) > 1 else checkpoint.source}")
    return [*words, "--", str(outputs[0])]


def _is_exported(path: Path) -> bool:
    try:
        return path.is_dir() and Manifest.read(path).kind == "model"
    except BundleError:
        return False


def _stage(
    recipe: Recipe, base: Path, name: str, reads: Sequence[Stage], more: Mapping[str, Any] | None = None
) -> Stage:
    table = dict(recipe.table(name) or {})
    if name == "eval" and table.get("reference") == FLOAT:
        del table["reference"]
    if name == "bench" and (baseline := table.pop("baseline", None)) is not None and (base / baseline).is_dir():
        # A baseline bundle is measured in turns with the new one; a baseline file is only compared.
        table["against"] = [*table.get("against", ()), f"piston:{baseline}"]
        more = {**(more or {}), "baseline": hashed_files([baseline], base)}
    options = words_of(name, table)
    tools, files = tools_of(name), hashed_files(table.values(), base)
    inputs = {
        "stage": name,
        "options": options,
        "reads": [stage.key for stage in reads],
        "files": files,
        "tools": tools,
        "code": code_of(name),
        "more": dict(more or {}),
    }
    return Stage(
        name=name,
        key=digest_of(inputs)[:KEY_LENGTH],
        reads=tuple(stage.name for stage in reads),
        options=tuple(options),
        tools=tools,
        files=files,
    )
