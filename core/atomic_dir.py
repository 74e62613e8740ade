"""A stage's output directory: filled next to its destination, renamed into place when complete, removed on failure.

A killed process loses its lock, so the next run finds what it left behind and removes it.
"""

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from piston.core.console import note
from piston.core.errors import Error, HostMemoryError, MisuseError, OutputExistsError, ShortfallError
from piston.core.outputs import check_apart, check_replaceable

FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk without room
_LEFTOVER = re.compile(r"\.(?P<goal>.+)\.[a-z0-9_]{8}\.part")


@contextmanager
def atomic_dir(
    goal: Path, *, overwrite: bool = False, reads: Iterable[Path] = (), is_private: bool = False
) -> Iterator[Path]:
    """Yield an empty directory that becomes `goal` if the block succeeds and is removed if it fails.

    Both are on one file system, so the rename is atomic and no reader sees a half-written goal. Leftovers of killed
    processes that wrote the same goal are removed first. If one was killed between moving the old goal aside and moving
    the new one in, the old one is put back.

    Args:
        goal: the directory.
        overwrite: replace a goal that Piston wrote.
        reads: files and directories that the work reads; the goal must not contain them.
        is_private: the goal is an entry of Piston's own cache; anything at that path is replaced.

    Raises:
        OutputExistsError: the goal may not be replaced; checked before the work and again after it.
        Error: the disk is full, or the place cannot be written.
    """
    goal = Path(os.path.abspath(goal))  # noqa: PTH100 - "." has no name, and a link is replaced, not followed
    sweep(goal.parent, goal.name)
    if not is_private:
        check_free(goal, overwrite=overwrite, reads=reads)
    try:
        with scratch_dir(goal.parent, goal.name) as stage:
            work = stage / "new"  # mkdtemp's own directory is private
            work.mkdir()
            yield work
            if not is_private:
                check_free(goal, overwrite=overwrite, reads=reads)
            _publish(work, goal, aside=stage / "old")
    except OSError as problem:
        if _full(problem) is not None:
            raise Error(
                f"The disk of {goal.parent} is full; nothing was written. Free space and try again."
            ) from problem
        raise


@contextmanager
def scratch_dir(parent: Path, name: str) -> Iterator[Path]:
    """Yield an empty, private directory in `parent`, removed after the block; `sweep` removes it after a kill.

    Raises:
        Error: the place cannot be written.
    """
    try:
        parent.mkdir(parents=True, exist_ok=True)
        stage, lock = _claim(parent, name)
    except OSError as problem:
        raise Error(f"Cannot write next to {parent / name}: {problem.strerror}; choose another place.") from problem
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        os.close(lock)


@contextmanager
def resumable_dir(goal: Path, stage: str, *, reads: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a directory next to `goal` from which an interrupted `stage` resumes; removed after success or an error.

    One process at a time works in it: two that write the same goal would overwrite each other's files. The directory is
    also kept when a result misses its bound, so that a run with another bound, or another choice of layers, resumes
    from it, and when the disk or the memory is full.

    Raises:
        MisuseError: the directory contains one of `reads`.
        Error: another process works in it, or the place cannot be written.
        HostMemoryError: there was not enough memory.
    """
    place = Path(os.path.abspath(goal.parent)) / f".{goal.name}.{stage}"  # noqa: PTH100 - as in atomic_dir
    check_apart(place, reads)
    lock = _claim_alone(place, goal)
    try:
        yield place
    except ShortfallError as problem:
        if not any(place.iterdir()):
            raise
        raise ShortfallError(
            f"{problem} The work so far is kept in {place}; run the same command with another bound to resume."
        ) from problem
    except MemoryError as problem:
        reason = str(problem).rstrip(".") or "an allocation failed"
        raise HostMemoryError(
            f"Out of memory: {reason}. The work so far is kept in {place}; free some and run the same command again to "
            "resume."
        ) from problem
    except Exception as problem:
        if (full := _full(problem)) is not None:
            raise Error(
                f"The disk of {place.parent} is full. The work so far is kept in {place}; free space and run the same "
                "command again to resume."
            ) from full
        shutil.rmtree(place, ignore_errors=True)
        raise
    else:
        shutil.rmtree(place, ignore_errors=True)
    finally:
        with suppress(OSError):
            place.rmdir()  # an interrupt before anything could be resumed
        os.close(lock)


def check_free(goal: Path, *, overwrite: bool = False, reads: Iterable[Path] = ()) -> None:
    """Raise unless a stage may write `goal`: it does not exist, is empty, or may be replaced.

    Raises:
        OutputExistsError: it exists and overwrite is False, or Piston did not write it.
        MisuseError: it contains one of `reads` or the current directory, or its name is not UTF-8.
        Error: this system cannot write directories safely, see `locks`.
    """
    locks()
    goal = Path(os.path.abspath(goal))  # noqa: PTH100 - as in atomic_dir
    try:
        str(goal).encode("utf-8")
    except UnicodeEncodeError:
        raise MisuseError(f"The name of {str(goal)!a} is not UTF-8; choose another output.") from None
    if not os.path.lexists(goal):
        return
    if goal.is_dir() and goal.samefile(Path.cwd()):
        raise OutputExistsError(f"{goal} is the current directory; name one to create inside it.")
    check_apart(goal, reads)
    if goal.is_dir() and any(goal.samefile(part) for part in Path.cwd().parents):
        raise OutputExistsError(f"{goal} contains the current directory; choose another output.")
    if os.path.ismount(goal):
        raise OutputExistsError(f"{goal} is a mount point, which cannot be replaced; name a directory inside it.")
    if goal.is_dir() and not any(goal.iterdir()):
        return
    if not overwrite:
        raise OutputExistsError(f"{goal} exists already; remove it, choose another -o, or pass --overwrite.")
    check_replaceable(goal)


def sweep(parent: Path, name: str | None = None) -> list[Path]:
    """Remove what killed processes left in `parent` while writing the goal `name`, or any goal; return what was found.

    Files of a running process are left alone. A goal that was moved aside and is missing now is put back.
    """
    swept: list[Path] = []
    for path in sorted(_leftovers(parent, name)):
        lock = try_lock(path)
        if lock is None:
            continue
        try:
            _restore(path)
            shutil.rmtree(path, ignore_errors=True)
            swept.append(path)
        finally:
            os.close(lock)
    return swept


def locks() -> Any:
    """The module fcntl; raises Error where it does not exist: every writer of a directory holds a lock on it."""
    try:
        import fcntl
    except ImportError:
        raise Error(
            "Models and bundles are written on Linux and macOS alone, since Windows lacks their file locks; fix: build "
            "there, or in WSL (`load`, `piston run` and `piston chat` take the bundle on Windows too)."
        ) from None
    return fcntl


def try_lock(path: Path) -> int | None:
    """Take the lock of an existing directory or file without waiting; return the descriptor that holds it.

    None where another process holds it, it no longer exists, or the file system has no locks.
    """
    fcntl = locks()
    try:
        lock = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _claim(parent: Path, name: str) -> tuple[Path, int]:
    """Create a directory; return it and the descriptor whose lock keeps others from removing it."""
    locks()  # or nothing is made
    while True:
        stage = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".part", dir=parent))
        lock = try_lock(stage)
        if lock is not None and stage.exists():  # another process may have removed it already
            return stage, lock
        if lock is not None:
            os.close(lock)
        elif stage.exists():  # no locks here, so no other process can remove it either
            return stage, os.open(stage, os.O_RDONLY)


def _claim_alone(place: Path, goal: Path) -> int:
    """Create the directory if it is missing; return its descriptor, locked by this process alone."""
    fcntl = locks()
    while True:
        try:
            place.mkdir(parents=True, exist_ok=True)
            lock = os.open(place, os.O_RDONLY)
        except FileNotFoundError:
            continue  # removed in between, by the process that worked in it
        except OSError as problem:
            raise Error(f"Cannot write next to {goal}: {problem.strerror}; choose another place.") from problem
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise Error(f"{goal} is being written by another process; wait for it, or choose another -o.") from None
        except OSError:
            return lock  # no locks here
        with suppress(FileNotFoundError):  # as above
            if os.path.samestat(place.stat(), os.fstat(lock)):
                return lock
        os.close(lock)


def _full(problem: BaseException) -> OSError | None:
    """The error of a full disk that `problem` is or was caused by."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return cause
        cause = cause.__cause__
    return None


def _leftovers(parent: Path, name: str | None) -> Iterator[Path]:
    try:
        entries = list(os.scandir(parent))
    except OSError:
        return
    for entry in entries:
        match = _LEFTOVER.fullmatch(entry.name)
        if match is not None and name in (None, match["goal"]) and entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)


def _restore(leftover: Path) -> None:
    match = _LEFTOVER.fullmatch(leftover.name)
    assert match is not None
    goal, aside = leftover.parent / match["goal"], leftover / "old"
    if os.path.lexists(aside) and not os.path.lexists(goal):
        aside.rename(goal)
        note(f"{goal} was put back as it was before a run that was killed while replacing it")


def _publish(work: Path, goal: Path, aside: Path) -> None:
    """Rename work to goal; an existing goal is moved aside first, and back if that fails or is interrupted."""
    try:
        if os.path.lexists(goal):
            goal.rename(aside)
        work.rename(goal)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(goal):
            aside.rename(goal)
        raise
