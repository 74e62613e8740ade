"""Built engines by the content they were built from, so that building the same thing twice takes no time.

An entry is a directory that appears whole, by renaming, and is never written again: two builds at once may both make
it, and the second to finish throws its own away. A plan is executable code, so what is taken out is hashed first.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from piston.core.atomic_dir import FULL
from piston.core.bundle import is_graph_file
from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import EngineSpec, Manifest, record_files, stays_inside
from piston.core.console import note
from piston.core.json_text import json_text
from piston.core.schema import SchemaError, validated
from piston.engines.tensorrt.target import Target
from piston.runtime.backends.tensorrt.log import open_module

DEFAULT_LIMIT = 20 * 2**30  # bytes of all entries
SPEC = "engine.json"


def key_of(target: Target, model: Manifest, asked: Mapping[str, Any], graph: str = DECODER) -> str:
    """A hash of everything an engine depends on: graph, weights, options, target, compiler, and Piston's own code.

    The model directory's hashes have been verified. Raises MissingExtraError if the compiler is not installed.
    """
    module = open_module(target.module)
    parts = {
        "files": {name: record.sha256 for name, record in model.files.items() if is_graph_file(name)},
        "graph": graph,
        "model": dataclasses.asdict(model.model),
        "requested": dict(asked),
        "target": target.text,
        "gpu": _present_gpu() if target.module == "tensorrt" else None,
        "compiler": [target.module, str(module.__version__)],
        "code": _code_hash(),
    }
    return hashlib.sha256(json_text(parts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A directory of entries, the least recently used of which go first when it grows beyond `limit` bytes."""

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.directory = directory
        self.limit = limit

    def take(self, key: str, work: Path) -> EngineSpec | None:
        """Copy an entry's files below `work`; None where there is none, or where its bytes are not those put there.

        Raises:
            OSError: the disk of `work` is full.
        """
        entry = self.directory / key
        if not entry.is_dir():
            return None
        with tempfile.TemporaryDirectory(dir=work, prefix="taken.") as scratch:
            try:
                data = json.loads((entry / SPEC).read_text(encoding="utf-8"))
                spec: EngineSpec = validated(EngineSpec, data["spec"])
                is_whole = spec.path in data["files"] and all(
                    _copy_hashed(entry / "files", name, Path(scratch)) == sha for name, sha in data["files"].items()
                )
            except (OSError, ValueError, KeyError, TypeError, SchemaError) as problem:
                if isinstance(problem, OSError) and problem.errno in FULL:
                    raise  # the disk below `work`: the entry is whole
                is_whole = False
            if not is_whole:
                self._drop(entry)
                return None
            for item in Path(scratch).iterdir():
                item.rename(work / item.name)
        with suppress(OSError):
            os.utime(entry)  # read lately
        return spec

    def put(self, key: str, work: Path, spec: EngineSpec) -> None:
        """Keep a copy of the engine below `work`. A cache that cannot be written is told of; the build is done."""
        try:
            self._put(key, work, spec)
            self._trim(key)
        except OSError as problem:
            note(f"warning: the engine is not kept in the cache {self.directory}: {problem.strerror or problem}")

    def _put(self, key: str, work: Path, spec: EngineSpec) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        engine_dir = (work / spec.path).parent
        with tempfile.TemporaryDirectory(dir=self.directory, prefix="new.", ignore_cleanup_errors=True) as made:
            entry = Path(made) / "entry"
            try:
                shutil.copytree(engine_dir, entry / "files" / engine_dir.relative_to(work))
            except shutil.Error as problem:  # a list of what happened to each file
                raise OSError(problem.args[0][0][2]) from problem
            files = {name: record.sha256 for name, record in record_files(entry / "files").items()}
            text = json_text({"spec": dataclasses.asdict(spec), "files": files})
            (entry / SPEC).write_text(text, encoding="utf-8")
            with suppress(OSError):  # somebody else was first
                entry.rename(self.directory / key)

    def _trim(self, newest: str) -> None:
        found = [entry for path in self.directory.iterdir() if (entry := _measured(path)) is not None]
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self.limit or path.name == newest:
                continue
            self._drop(path)
            total -= size

    def _drop(self, entry: Path) -> None:
        """Take an entry out of sight at once, then delete it: nobody sees half of one."""
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self.directory, prefix="old.") as aside:
            entry.rename(Path(aside) / entry.name)


def _measured(path: Path) -> tuple[float, int, Path] | None:
    """When an entry was last used, its bytes, and its path; None for what is none, or has been removed meanwhile."""
    try:
        used = path.stat().st_mtime
        if not (path / SPEC).is_file():
            return None
        return used, sum(item.stat().st_size for item in path.rglob("*") if item.is_file()), path
    except OSError:
        return None


def _copy_hashed(files: Path, name: str, goal: Path) -> str:
    """Copy a file of an entry below `goal`; the SHA-256 of the bytes that were written.

    Raises:
        ValueError: the name, or a link on the way to it, leads out of `files`.
    """
    digest, source = hashlib.sha256(), files / name
    if not stays_inside(name) or source.resolve() != files.resolve() / name:
        raise ValueError(name)
    (goal / name).parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as reader, (goal / name).open("xb") as writer:
        while block := reader.read(2**20):
            digest.update(block)
            writer.write(block)
    return digest.hexdigest()


@functools.cache
def _code_hash() -> str:
    """Of the modules that decide what an engine is: another Piston makes another engine."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _present_gpu() -> str | None:
    from piston.core.errors import Error
    from piston.runtime.backends.environment import Machine

    try:
        device = Machine().require_device()
    except Error:
        return None
    return f"{device.name} {device.sm}"
