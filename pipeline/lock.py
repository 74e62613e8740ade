"""piston.lock: hashes of a bundle's inputs and outputs, and how a rebuild compares with them.

bit-equal           every engine file has the recorded bytes
graph-equal         the ONNX graph and weights do, but a compiler produced other engines from them
numerically-equal   the engines give the recorded answers, except where the two best tokens are too close
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from piston.core.bundle import is_graph_file
from piston.core.bundle.golden import FILE_NAME as ANSWERS
from piston.core.bundle.golden import Golden, GoldenByTarget
from piston.core.bundle.manifest import Manifest
from piston.core.bundle.provenance import checkpoint_hashes
from piston.core.errors import Error, MisuseError, OutputExistsError
from piston.core.json_text import json_text
from piston.core.outputs import write_output
from piston.core.schema import SchemaError, validated
from piston.pipeline.cache_key import machine
from piston.pipeline.plan import Checkpoint, Stage
from piston.pipeline.report import Equality, LockReport
from piston.runtime.verify_outputs import comparable_distance


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """The file."""

    checkpoint: Mapping[str, str]  # SHA-256 of its files
    options: Mapping[str, tuple[str, ...]]  # of each stage that writes
    data: Mapping[str, str]  # SHA-256 of the files that the options name
    tokenizer: str | None  # a module of one's own has none
    rows: str | None  # of the calibration rows, as token ids
    graph: Mapping[str, str]  # of the model directory that was built
    bundle: Mapping[str, str]
    answers: Mapping[str, Golden]
    tools: Mapping[str, str]
    machine: Mapping[str, str]
    schema: Literal[1] = 1

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Raises SchemaError."""
        found: Self = validated(cls, data, whole="the lock file")
        return found


def lock_of(
    bundle: Manifest, model: Manifest, directory: Path, checkpoint: Checkpoint, stages: Sequence[Stage]
) -> Lock:
    """The lock of a finished run; `model` is the model directory that the bundle in `directory` was built from."""
    writers = [stage for stage in stages if stage.writes]
    calibration = model.made_by.get("calibration") or {}
    return Lock(
        checkpoint=dict(checkpoint.files) or checkpoint_hashes(bundle.made_by),
        options={stage.name: stage.options for stage in writers},
        data={name: sha256 for stage in writers for name, sha256 in stage.files.items()},
        tokenizer=None if "tokenizer.json" not in bundle.files else bundle.files["tokenizer.json"].sha256,
        rows=(calibration.get("data") or {}).get("sha256"),
        graph={name: record.sha256 for name, record in model.files.items() if is_graph_file(name)},
        bundle={name: record.sha256 for name, record in bundle.files.items() if name != ANSWERS},
        # Not every task has golden answers.
        answers=dict(GoldenByTarget.read(directory).engines) if ANSWERS in bundle.files else {},
        tools={name: version for stage in writers for name, version in stage.tools.items()},
        machine=machine(),
    )


def read_lock(path: Path) -> Lock:
    """Read a lock file; raises MisuseError if it is missing or not a lock file."""
    try:
        return Lock.from_json(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise MisuseError(f"{path} does not exist; run `piston make` once without --locked to write it.") from None
    except (OSError, ValueError, RecursionError, SchemaError) as problem:
        raise MisuseError(f"{path} is not a lock file ({problem}); run `piston make` without --locked.") from None


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock file atomically, if its contents changed."""
    values = sorted(dataclasses.asdict(lock).items())
    # Answers are long and read by programs: one line. People review changes of the rest.
    lines = [f' "{key}": {json_text(value, indent=None if key == "answers" else 2)}' for key, value in values]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    try:
        if path.read_text(encoding="utf-8") == text:
            return
    except (OSError, UnicodeDecodeError):
        pass
    write_output(path, text)


def check_lock_file(path: Path) -> None:
    """Raise OutputExistsError if the path exists and is not a lock file."""
    if os.path.lexists(path):
        try:
            read_lock(path)
        except MisuseError:
            raise OutputExistsError(
                f"{path} exists and is not a lock file; remove it, or name another output.lock."
            ) from None


def check_inputs(lock: Lock, path: Path, checkpoint: Checkpoint, stages: Sequence[Stage]) -> None:
    """Raise Error if the inputs of this run differ from the locked ones."""
    writers = [stage for stage in stages if stage.writes]
    wanted: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
        "the checkpoint": (dict(lock.checkpoint), dict(checkpoint.files) or dict(lock.checkpoint)),
        "the options": (dict(lock.options), {stage.name: stage.options for stage in writers}),
        "the data": (dict(lock.data), {name: sha256 for stage in writers for name, sha256 in stage.files.items()}),
    }
    for what, (old, new) in wanted.items():
        if old != new:
            name = next(key for key in sorted({*old, *new}) if old.get(key) != new.get(key))
            raise Error(
                f"{what.capitalize()} of this run ({name}) are not those in {path}; restore them, or run "
                "without --locked to lock the present ones."
            )


def compare(lock: Lock, rebuilt: Lock, path: Path) -> LockReport:
    """How a rebuild compares with the lock, and what changed."""
    names = ("tokenizer", "rows", "graph", "bundle", "tools", "machine")
    changed = [item for name in names for item in _changes(name, getattr(lock, name), getattr(rebuilt, name))]
    equality: Equality = "none"
    if lock.bundle == rebuilt.bundle:
        equality = "bit-equal"
    elif lock.graph == rebuilt.graph:
        equality = "graph-equal"
    elif (
        lock.answers
        and set(lock.answers) == set(rebuilt.answers)
        and all(_agree(lock.answers[target], rebuilt.answers[target]) for target in lock.answers)
    ):
        equality = "numerically-equal"
    return LockReport(path=str(path), equality=equality, changed=tuple(changed))


def _changes(name: str, old: Any, new: Any) -> list[str]:
    if not isinstance(old, Mapping):
        return [] if old == new else [f"{name}: {old} became {new}"]
    keys = sorted({*old, *new})
    return [
        f"{name}.{key}: {_short(old.get(key))} became {_short(new.get(key))}"
        for key in keys
        if old.get(key) != new.get(key)
    ]


def _short(value: str | None) -> str:
    return "nothing" if value is None else value[:16]


def _agree(old: Golden, new: Golden) -> bool:
    """Whether prompts are the same, and tokens up to the first that either could not separate from its second best."""
    if [answer.prompt_ids for answer in old.answers] != [answer.prompt_ids for answer in new.answers]:
        return False
    if [output.ids for output in old.outputs] != [output.ids for output in new.outputs]:
        return False
    allowed = max(golden.tolerance("float32", is_int8=False) for golden in (old, new))
    if any(
        _differ(before.values, after.values, allowed) for before, after in zip(old.outputs, new.outputs, strict=True)
    ):
        return False
    if not _agree_on_examples(old, new, allowed):
        return False
    threshold = max(old.threshold("float32"), new.threshold("float32"))
    for before, after in zip(old.answers, new.answers, strict=True):
        rows = zip(before.token_ids, after.token_ids, before.margins, after.margins, strict=False)
        for token, other, margin, other_margin in rows:
            if token != other:
                if min(margin, other_margin) > threshold:
                    return False
                break  # both continue from different tokens
    return True


def _agree_on_examples(old: Golden, new: Golden, allowed: float) -> bool:
    """Whether the outputs of a module, or of an encoder, are the same, up to a share of their length."""
    before = {
        (number, name): values for number, item in enumerate(old.examples) for name, values in item.values.items()
    }
    after = {(number, name): values for number, item in enumerate(new.examples) for name, values in item.values.items()}
    return before.keys() == after.keys() and not any(_differ(before[key], after[key], allowed) for key in before)


def _differ(old: Sequence[float], new: Sequence[float], allowed: float) -> bool:
    distance = comparable_distance(np.array(new), np.array(old))
    return distance is None or distance > allowed
