"""A cache of stage results by the hash of their inputs; safe under interruption and with several runs at once.

ROOT/locks/STAGE-KEY     held while an entry is read, made or removed; STAGE-KEY.used is shared by runs that use it
ROOT/STAGE/KEY/          an entry, renamed into place when complete
    entry.json           its record and the hash of that; touched at each use
    output/              files
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from piston.core.atomic_dir import atomic_dir, locks, sweep, try_lock
from piston.core.bundle.manifest import sha256_of
from piston.core.console import note
from piston.core.errors import Error
from piston.core.json_text import json_text
from piston.pipeline.cache_key import digest_of

RECORD, OUTPUT, LOCKS = "entry.json", "output", "locks"
USED = ".used"


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry with a valid record; its files may still be damaged."""

    directory: Path
    record: dict[str, Any]

    @property
    def output(self) -> Path:
        """The directory of its files."""
        return self.directory / OUTPUT

    @property
    def num_bytes(self) -> int:
        """Of its files."""
        return sum(file["size"] for file in self.record["files"].values())

    def damage(self) -> str | None:
        """What is wrong with its files; None if each has the recorded bytes and none is missing or additional."""
        recorded = self.record["files"]
        try:
            present = _files(self.output)
            for name in sorted({*recorded, *present}):
                if name not in present or name not in recorded:
                    return f"{name} is {'missing' if name in recorded else 'not recorded'}"
                path = self.output / name
                if path.stat().st_size != recorded[name]["size"] or sha256_of(path) != recorded[name]["sha256"]:
                    return f"{name} is not the file that was recorded"
        except OSError as problem:
            return str(problem)
        return None


class Cache:
    """A directory of entries, kept below `max_bytes` by removing the least recently used."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self.used: dict[Path, int | None] = {}  # entries in use by this run, which no run evicts, and their locks
        try:
            (root / LOCKS).mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise Error(f"Cannot write the cache {root}: {problem.strerror}; choose another --cache-dir.") from problem
        for place in (root, *self._stages()):
            sweep(place)

    @contextmanager
    def locked(self, stage: str, key: str) -> Iterator[None]:
        """Hold the lock of an entry; waits for another holder and prints a note."""
        fcntl = locks()
        lock = os.open(self.root / LOCKS / f"{stage}-{key}", os.O_RDONLY | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                note(f"  {stage}: another run is making it; waiting")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def find(self, stage: str, key: str) -> Entry | None:
        """The entry if its record is valid, else None, and the entry is removed. The caller holds its lock."""
        directory = self.root / stage / key
        entry = read_entry(directory)
        if entry is None:
            if os.path.lexists(directory):
                self.remove(directory, "its record cannot be read")
            return None
        self._use(directory)
        return entry

    def remove(self, directory: Path, reason: str) -> None:
        """Remove a damaged entry and print a note."""
        note(f"  the cache entry {directory} is damaged ({reason}); it is made again")
        if directory.is_dir() and not directory.is_symlink():
            shutil.rmtree(directory, ignore_errors=True)
        else:
            directory.unlink()
        if os.path.lexists(directory):
            raise Error(
                f"The damaged cache entry {directory} cannot be removed; remove it, or choose another --cache-dir."
            )

    @contextmanager
    def making(self, stage: str, key: str) -> Iterator["Making"]:
        """Yield a place for the files of a new entry, which exists after the block. The caller holds its lock."""
        directory = self.root / stage / key
        with atomic_dir(directory, is_private=True) as work:
            making = Making(work / OUTPUT)
            making.output.mkdir()
            yield making
            write_record(work, making.record)
        self._use(directory)

    def evict(self) -> list[Path]:
        """Remove the least recently used entries until the rest fits; entries in use are kept."""
        entries = [entry for stage in self._stages() for entry in map(read_entry, _listed(stage)) if entry]
        total = sum(entry.num_bytes for entry in entries)
        removed = []
        for entry in sorted(entries, key=_last_used):
            if total <= self.max_bytes:
                break
            if entry.directory in self.used or not self._remove_unused(entry.directory):
                continue
            total -= entry.num_bytes
            removed.append(entry.directory)
        return removed

    def _remove_unused(self, directory: Path) -> bool:
        locks: list[int] = []
        try:
            for path in (self._lock_of(directory), self._lock_of(directory, USED)):
                with suppress(OSError):  # nothing is removed from a read-only cache
                    path.touch()
                if (lock := try_lock(path)) is None:
                    return False
                locks.append(lock)
            shutil.rmtree(directory, ignore_errors=True)
        finally:
            for lock in locks:
                os.close(lock)
        return not directory.exists()

    def release(self) -> None:
        """Allow other runs to evict the entries that this run used."""
        for lock in self.used.values():
            if lock is not None:
                os.close(lock)
        self.used = dict.fromkeys(self.used)

    def _lock_of(self, directory: Path, suffix: str = "") -> Path:
        return self.root / LOCKS / f"{directory.parent.name}-{directory.name}{suffix}"

    def _use(self, directory: Path) -> None:
        """Note that an entry is in use and hold a shared lock on it, so that no other run evicts it."""
        import fcntl

        if self.used.get(directory) is None:
            try:
                self.used[directory] = os.open(self._lock_of(directory, USED), os.O_RDONLY | os.O_CREAT, 0o644)
                fcntl.flock(self.used[directory], fcntl.LOCK_SH)  # type: ignore[arg-type]
            except OSError:  # a file system without locks, or one that cannot be written
                self.used.setdefault(directory, None)
        try:
            os.utime(directory / RECORD)
        except OSError:  # a read-only cache works too
            return

    def _stages(self) -> list[Path]:
        return sorted(
            path
            for path in _listed(self.root)
            if path.is_dir() and path.name != LOCKS and not path.name.startswith(".")
        )


class Making:
    """An entry that is being filled: files go to `output`, facts about it to `record`."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.record: dict[str, Any] = {}


def write_record(directory: Path, record: dict[str, Any]) -> None:
    """Write entry.json: the record, the files of the entry, and a hash of both."""
    output = directory / OUTPUT
    files = {
        name: {"sha256": sha256_of(output / name), "size": (output / name).stat().st_size} for name in _files(output)
    }
    whole = {**record, "files": files}
    text = json_text({"record": whole, "sha256": digest_of(whole)}, indent=1)
    (directory / RECORD).write_text(text + "\n", encoding="utf-8")


def read_entry(directory: Path) -> Entry | None:
    """The entry in a directory, or None without a valid record."""
    try:
        data = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        if digest_of(data["record"]) != data["sha256"]:
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return Entry(directory, data["record"])


def _listed(directory: Path) -> list[Path]:
    """The contents of a directory; empty where another run has removed it."""
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _last_used(entry: Entry) -> int:
    """The time of last use in nanoseconds; 0 where another run has removed the entry."""
    try:
        return (entry.directory / RECORD).stat().st_mtime_ns
    except OSError:
        return 0


def _files(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if not path.is_dir())
