"""A stage's output directory: filled beside its goal, renamed into place when whole, removed when not."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from piston.runtime.errors import Error, OutputExistsError


@contextmanager
def staged_dir(goal: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes `goal` if the block succeeds and vanishes if it does not.

    Both lie on one file system, so the rename is atomic: nobody ever sees a half-written goal.

    Raises:
        OutputExistsError: the goal is there and overwrite is False; checked before the work and again after it.
        Error: no space was left, or the place cannot be written.
    """
    check_free(goal, overwrite=overwrite)
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".part", dir=goal.parent))
    except OSError as problem:
        raise Error(f"Cannot write beside {goal}: {problem.strerror}; choose another -o.") from problem
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private
        check_free(goal, overwrite=overwrite)
        _publish(work, goal)
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Error(
                f"The disk of {goal.parent} is full; nothing was written. Free space and try again."
            ) from problem
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check_free(goal: Path, *, overwrite: bool = False) -> None:
    """Raise OutputExistsError if `goal` is there and may not be replaced. An empty directory counts as free."""
    if overwrite or not os.path.lexists(goal):
        return
    if goal.is_dir() and not any(goal.iterdir()):
        return
    raise OutputExistsError(f"{goal} exists already; remove it, choose another -o, or pass --overwrite.")


def _publish(work: Path, goal: Path) -> None:
    """Rename work to goal; what stood there is moved aside first, so that a failure can put it back."""
    if not goal.is_dir() or not any(goal.iterdir()):
        if goal.is_file():
            goal.unlink()
        work.rename(goal)  # POSIX replaces an empty directory
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".old", dir=goal.parent))
    goal.rename(aside)
    try:
        work.rename(goal)
    except OSError:
        aside.rename(goal)
        raise
    shutil.rmtree(aside, ignore_errors=True)
