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
    goal = Path(os.path.abspath(goal))  # noqa: PTH100 - "." has no name, and a link is replaced, not followed
    check_free(goal, overwrite=overwrite)
    try:
        goal.parent.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=f".{goal.name}.", suffix=".part", dir=goal.parent))
    except OSError as problem:
        raise Error(f"Cannot write beside {goal}: {problem.strerror}; choose another -o.") from problem
    try:
        work = stage / "new"  # mkdtemp's own directory is private
        work.mkdir()
        yield work
        check_free(goal, overwrite=overwrite)
        _publish(work, goal, aside=stage / "old")
    except OSError as problem:
        if problem.errno in (errno.ENOSPC, errno.EDQUOT):
            raise Error(
                f"The disk of {goal.parent} is full; nothing was written. Free space and try again."
            ) from problem
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def check_free(goal: Path, *, overwrite: bool = False) -> None:
    """Raise OutputExistsError if `goal` is there and may not be replaced. An empty directory counts as free."""
    if not os.path.lexists(goal):
        return
    if goal.is_dir() and goal.samefile(Path.cwd()):
        raise OutputExistsError(f"{goal} is the current directory; name one to create inside it.")
    if os.path.ismount(goal):
        raise OutputExistsError(f"{goal} is a mount point, which cannot be replaced; name a directory inside it.")
    if overwrite or (goal.is_dir() and not any(goal.iterdir())):
        return
    raise OutputExistsError(f"{goal} exists already; remove it, choose another -o, or pass --overwrite.")


def _publish(work: Path, goal: Path, aside: Path) -> None:
    """Rename work to goal; what stood there is moved aside first, and back if that fails or is interrupted."""
    try:
        if os.path.lexists(goal):
            goal.rename(aside)
        work.rename(goal)
    except BaseException:
        if os.path.lexists(aside) and not os.path.lexists(goal):
            aside.rename(goal)
        raise
