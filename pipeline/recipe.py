"""The recipe of a bundle: a TOML file, read completely or refused with the name of the wrong field."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from piston.core.errors import MisuseError
from piston.core.gates import Gate, Metric
from piston.core.schema import SchemaError, validated
from piston.pipeline.gates import parse_gate, stage_of
from piston.pipeline.options import check_table

VERIFY = "verify"
FLOAT = "float"  # as eval.reference: the model directory that this recipe exports
TABLES = ("export", "calibrate", "build", "verify", "eval", "bench")
MAX_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The checkpoint: a local path with its hash, or a hub id with a commit."""

    source: str
    sha256: str | None = None  # of a file, or of a directory's listing: see cache_key.py
    revision: str | None = None
    license: str | None = None  # SPDX, for the bill of materials


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """What is written, relative to the recipe."""

    bundle: str
    report: str | None = None  # a directory
    lock: str = "piston.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The conditions; see gates.py. `verify` must pass unless it is skipped, even where it is not named."""

    require: tuple[str, ...] = ()
    skip: tuple[Literal["verify"], ...] = ()  # where no engine of the bundle can run on the machine that makes it

    @property
    def all(self) -> tuple[str, ...]:
        """Every gate as text."""
        is_implied = VERIFY not in self.skip and not any(text.strip() == VERIFY for text in self.require)
        return (*((VERIFY,) if is_implied else ()), *self.require)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Every table but three holds options of the verb of its name; a missing table means that the stage does not run.

    `export` and `build` always run, and so does `verify` unless gates.skip names it.
    """

    checkpoint: Source
    output: Output
    export: Mapping[str, Any] = field(default_factory=dict)
    calibrate: Mapping[str, Any] | None = None
    build: Mapping[str, Any] = field(default_factory=dict)
    verify: Mapping[str, Any] = field(default_factory=dict)
    eval: Mapping[str, Any] | None = None
    bench: Mapping[str, Any] | None = None
    gates: Gates = field(default_factory=Gates)
    schema: Literal[1] = 1

    @property
    def parsed_gates(self) -> tuple[Gate[Metric], ...]:
        """The gates in order; they were checked when the recipe was read."""
        return tuple(parse_gate(text) for text in self.gates.all)

    def table(self, verb: str) -> Mapping[str, Any] | None:
        """The options of a verb; None where it is not run."""
        table: Mapping[str, Any] | None = getattr(self, verb)
        return table


def read_recipe(path: Path, *, needs_hash: bool = True) -> Recipe:
    """Read and check a recipe; `needs_hash=False` takes one that does not state the checkpoint's hash yet.

    Raises:
        MisuseError: it cannot be read, or a field is wrong; the message names file and field.
        MissingExtraError: it has a table of a verb whose packages are not installed.
    """
    try:
        data = path.read_bytes()
        text = data.decode("utf-8")
    except OSError as problem:
        raise MisuseError(f"Cannot read the recipe {path}: {problem.strerror}.") from None
    except UnicodeDecodeError as problem:
        raise MisuseError(f"{path} is not UTF-8 (byte {problem.start:,}).") from None
    if len(data) > MAX_BYTES:
        raise MisuseError(f"{path} has {len(data):,} bytes; a recipe may have at most {MAX_BYTES:,}.")
    try:
        value = tomllib.loads(text)
    except (ValueError, RecursionError) as problem:
        raise MisuseError(f"{path} is not TOML: {problem}.") from None
    try:
        recipe: Recipe = validated(Recipe, value, whole="the recipe")
        _check(recipe, needs_hash=needs_hash)
    except SchemaError as problem:
        raise MisuseError(f"{path}: {problem}.") from None
    return recipe


def _check(recipe: Recipe, *, needs_hash: bool) -> None:
    for verb in TABLES:
        if (table := recipe.table(verb)) is not None:
            check_table(verb, table)
    _check_source(recipe.checkpoint, needs_hash=needs_hash)
    _check_gates(recipe)


def _check_source(stated: Source, *, needs_hash: bool) -> None:
    if needs_hash and stated.sha256 is None and stated.revision is None:
        raise SchemaError(
            "the checkpoint has neither sha256 (for a local path; `piston make --dry-run` prints it) nor revision "
            "(the commit of a hub id)",
            ("checkpoint",),
        )
    if stated.sha256 is not None and stated.revision is not None:
        raise SchemaError(
            "checkpoint.revision is for a hub id, checkpoint.sha256 for a local path; give one",
            ("checkpoint", "revision"),
        )


def _check_gates(recipe: Recipe) -> None:
    for index, gate in enumerate(recipe.gates.require):
        path = ("gates", "require", index)
        try:
            parsed = parse_gate(gate)
        except MisuseError as problem:
            raise SchemaError(str(problem).rstrip("."), path) from None
        if recipe.table(needed := stage_of(parsed)) is None:
            raise SchemaError(f"{gate!r} needs a table [{needed}]", path)
        if parsed.needs_reference and "reference" not in (recipe.eval or {}):
            raise SchemaError(f"{gate!r} needs eval.reference, such as {FLOAT!r}", path)
        if parsed.change_of == "baseline" and "baseline" not in (recipe.bench or {}):
            raise SchemaError(f"{gate!r} needs bench.baseline, a bundle or the file of an earlier run", path)
    if VERIFY in recipe.gates.skip and (recipe.verify or any(gate.strip() == VERIFY for gate in recipe.gates.require)):
        raise SchemaError(
            "'verify' is skipped, but its table or a gate requires it; remove one of them", ("gates", "skip")
        )
    if len(set(recipe.gates.require)) != len(recipe.gates.require):
        raise SchemaError("a gate is named twice", ("gates", "require"))
