"""Where a command may write: never over its own inputs, and never over files that Piston did not write."""

import errno
import json
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from piston.core.bundle.manifest import FILE_NAME
from piston.core.errors import Error, MisuseError, OutputExistsError

ADDED = (".minisig", ".kernels", ".kernels.json")  # files that Piston adds later, next to the recorded ones
_NO_RENAME = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)  # the file may be writable all the same
_DEVICES = ("/dev/", "/proc/")  # /dev/stdout names a file that another process has open


def check_apart(goal: Path, reads: Iterable[Path]) -> None:
    """Raise MisuseError if the directory `goal` is, or contains, one of the inputs, under any name."""
    for read in reads:
        if goal.exists() and any(_is_same(goal, part) for part in _upwards(read)):
            raise MisuseError(f"The output {goal} would replace {read}, which is an input; choose another output.")


def check_replaceable(goal: Path) -> None:
    """Raise OutputExistsError unless `goal` is an empty directory, or one in which Piston wrote every file."""
    if goal.is_dir():
        recorded = _recorded(goal)
        foreign = next((name for name in _files(goal) if name not in recorded and not name.endswith(ADDED)), None)
        if foreign is None:
            return
        what = f"{goal} holds {foreign}, which Piston did not write"
    else:
        what = f"{goal} is not a directory that Piston wrote"
    raise OutputExistsError(
        f"{what}; only model directories and bundles are overwritten. Remove it, or choose another output."
    )


def check_output_files(outputs: Mapping[str, Path | None], reads: Iterable[Path | None]) -> None:
    """Raise MisuseError, before any work, for outputs that cannot be written or would replace an input.

    Args:
        outputs: option: the file that it names.
        reads: files and directories; of a directory with a manifest, the recorded files.
    """
    read_paths, earlier = [read for read in reads if read is not None], dict[Path, str]()
    for option, path in outputs.items():
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise MisuseError(f"{option} {path}: there is no directory {path.absolute().parent}.")
        if path.is_dir():
            raise MisuseError(f"{option} {path} is a directory; name a file.")
        if (read := next((read for read in read_paths if _would_damage(read, path)), None)) is not None:
            raise MisuseError(f"{option} {path} would replace {read}, or a part of it; choose another file.")
        place = path.resolve()
        if place in earlier and not _is_special(path):
            raise MisuseError(f"{earlier[place]} and {option} both name {path}; choose another file for one.")
        earlier[place] = option


def write_output(path: Path, content: str | bytes) -> None:
    """Write a file atomically: readers see the old file or the new one; hard links keep the old one.

    Raises:
        Error: it cannot be written.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        if _is_special(path):
            path.write_bytes(data)
            return
        place = path.resolve()  # the target of a link
        part = place.with_name(f".{place.name[:200]}.{secrets.token_hex(4)}")
        try:
            with part.open("xb") as file:
                file.write(data)
            part.replace(place)
        except BaseException as problem:
            with suppress(OSError):
                part.unlink()
            if not isinstance(problem, OSError) or problem.errno not in _NO_RENAME:
                raise
            place.write_bytes(data)
    except OSError as problem:
        raise Error(f"Cannot write {path}: {problem.strerror}.") from problem


def _recorded(directory: Path) -> set[str]:
    """The manifest of a directory and the files it records; empty where there is no manifest of Piston's.

    Lenient: the manifest of a newer Piston, or of a damaged directory, still shows that Piston wrote it.
    """
    try:
        data = json.loads((directory / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return set()
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int) or "kind" not in data:
        return set()
    files = data.get("files")
    return {FILE_NAME, *files} if isinstance(files, dict) else {FILE_NAME}


def _files(directory: Path) -> Iterator[str]:
    for place, folders, names in os.walk(directory):
        links = [name for name in folders if (Path(place) / name).is_symlink()]
        for name in sorted([*names, *links]):
            yield (Path(place) / name).relative_to(directory).as_posix()


def _would_damage(read: Path, path: Path) -> bool:
    """Whether writing the file `path` changes the input `read`."""
    if not path.exists() or not read.exists() or _is_special(path):
        return False
    if not read.is_dir():
        return _is_same(read, path)
    folder = next((part for part in _upwards(path.resolve().parent) if _is_same(part, read)), None)
    if folder is None:
        return False
    recorded = _recorded(read)
    return not recorded or path.resolve().relative_to(folder).as_posix() in recorded


def _upwards(path: Path) -> Iterator[Path]:
    """A path and its parent directories, as named and with links resolved."""
    named, resolved = Path(os.path.abspath(path)), path.resolve()  # noqa: PTH100 - `..` of the name itself
    yield from dict.fromkeys([named, *named.parents, resolved, *resolved.parents])


def _is_same(one: Path, other: Path) -> bool:
    """Identify a file by device and inode, so links, bind mounts and letter case do not matter."""
    try:
        return one.samefile(other)
    except OSError:
        return False


def _is_special(path: Path) -> bool:
    """Whether it is a pipe or a device, which is written directly."""
    return (path.exists() and not path.is_file()) or str(path.absolute()).startswith(_DEVICES)
