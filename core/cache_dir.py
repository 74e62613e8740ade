"""The cache directory: compiled engines, kernels, finished stages, all of which can be made again."""

import os
import stat
import tempfile
from pathlib import Path

from piston.core.errors import Error

VARIABLE = "PISTON_CACHE_DIR"


def cache_dir(name: str) -> Path:
    """The directory `name` of the cache; it need not exist yet, nor be writable.

    The cache is $PISTON_CACHE_DIR, or piston below $XDG_CACHE_HOME or ~/.cache. A process without a home directory (a
    container that runs as a user id with neither HOME nor an entry in /etc/passwd) gets its own directory below
    the system's temporary directory. The cache may hold executable code, so only this user may be able to write it.

    Raises:
        Error: there is no home directory, and the temporary one belongs to another user or cannot be created.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given) / name
    if (xdg := os.environ.get("XDG_CACHE_HOME", "")) and Path(xdg).is_absolute():  # as its specification asks
        return Path(xdg) / "piston" / name
    try:
        home = Path.home()
    except RuntimeError:
        return _temporary() / name
    return home / ".cache" / "piston" / name


def expand_user(path: str | Path) -> Path:
    """Expand a leading `~`; without a home directory the path stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _temporary() -> Path:
    """A private directory of this user below the temporary one, which is private itself where there are no user ids."""
    if not hasattr(os, "getuid"):
        return Path(tempfile.gettempdir()) / "piston"
    place = Path(tempfile.gettempdir()) / f"piston-{os.getuid()}"
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        found = place.lstat()
    except OSError as problem:
        raise Error(
            f"There is no home directory, and {place} cannot be made ({problem.strerror}); set {VARIABLE}."
        ) from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise Error(f"There is no home directory, and others can write to {place}; set {VARIABLE} or remove it.")
    return place
