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

from piston.core.bundle import GRAPH
from piston.core.bundle.manifest import CacheSpec, EngineSpec, Manifest, record_files
from piston.engines.tensorrt.target import Target
from piston.runtime.backends.tensorrt.log import open_module

DEFAULT_LIMIT = 20 * 2**30  # bytes of all entries
SPEC = "engine.json"


def key_of(target: Target, model: Manifest, asked: Mapping[str, Any]) -> str:
    """A hash of everything an engine depends on: graph, weights, options, target, compiler, and Piston's own code.

    The model directory's hashes have been verified. Raises MissingExtraError if the compiler is not installed.
    """
    module = open_module(target.module)
    parts = {
        "files": {name: record.sha256 for name, record in model.files.items() if name.startswith(GRAPH)},
        "model": dataclasses.asdict(model.model),
        "asked": dict(asked),
        "target": target.text,
        "gpu": _present_gpu() if target.module == "tensorrt" else None,
        "compiler": [target.module, str(module.__version__)],
        "code": _code_hash(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class EngineCache:
    """A directory of entries, the least recently used of which go first when it grows beyond `limit` bytes."""

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.directory = directory
        self.limit = limit

    def take(self, key: str, work: Path) -> EngineSpec | None:
        """Copy an entry's files below `work`; None where there is none, or where its bytes are not those put there."""
        entry = self.directory / key
        if not entry.is_dir():
            return None
        with tempfile.TemporaryDirectory(dir=work, prefix="taken.") as scratch:
            try:
                data = json.loads((entry / SPEC).read_text(encoding="utf-8"))
                spec = EngineSpec(**{**data["spec"], "cache": CacheSpec(**data["spec"]["cache"])})
                is_whole = all(_copy_hashed(entry, name, Path(scratch)) == sha for name, sha in data["files"].items())
            except (OSError, ValueError, KeyError, TypeError):
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
        """Keep a copy of the engine below `work`; a full disk is no failure of the build."""
        self.directory.mkdir(parents=True, exist_ok=True)
        engine_dir = (work / spec.path).parent
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self.directory, prefix="new.") as made:
            entry = Path(made) / "entry"
            shutil.copytree(engine_dir, entry / "files" / engine_dir.relative_to(work))
            files = {name: record.sha256 for name, record in record_files(entry / "files").items()}
            text = json.dumps({"spec": dataclasses.asdict(spec), "files": files})
            (entry / SPEC).write_text(text, encoding="utf-8")
            with suppress(OSError):  # somebody else was first
                entry.rename(self.directory / key)
        self._trim(key)

    def _trim(self, newest: str) -> None:
        entries = [path for path in self.directory.iterdir() if (path / SPEC).is_file()]
        sizes = {path: sum(item.stat().st_size for item in path.rglob("*") if item.is_file()) for path in entries}
        total = sum(sizes.values())
        for path in sorted(entries, key=lambda item: item.stat().st_mtime):
            if total <= self.limit or path.name == newest:
                continue
            self._drop(path)
            total -= sizes[path]

    def _drop(self, entry: Path) -> None:
        """Take an entry out of sight at once, then delete it: nobody sees half of one."""
        with suppress(OSError), tempfile.TemporaryDirectory(dir=self.directory, prefix="old.") as aside:
            entry.rename(Path(aside) / entry.name)


def _copy_hashed(entry: Path, name: str, goal: Path) -> str:
    """Copy a file of an entry below `goal`; the SHA-256 of the bytes that were written."""
    digest = hashlib.sha256()
    (goal / name).parent.mkdir(parents=True, exist_ok=True)
    with (entry / "files" / name).open("rb") as reader, (goal / name).open("wb") as writer:
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
