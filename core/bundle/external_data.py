"""Where the graphs of a directory keep their weights: in recorded files beside them, or the directory is refused."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from piston.core.atomic_dir import scratch_dir
from piston.core.bundle.manifest import FILE_NAME, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.errors import BundleCorruptError, BundleError


@contextmanager
def plain_files(directory: Path, goal: Path) -> Iterator[Path]:
    """A model directory whose files are no links: itself, or a copy beside `goal` that lasts as long as the block.

    onnx_ir reads no weights through symbolic links, nor from files with a second hard link, because a graph could lead
    it astray; package managers and the hub's cache make directories of nothing else. Here the manifest's hashes decide
    what is read, and the copy takes the size of the model on disk for a while.

    Raises:
        BundleCorruptError: there are links, and a file is not the recorded one.
        Error: the copy cannot be written.
    """
    try:
        manifest = Manifest.read(directory)
    except BundleError:
        yield directory  # whoever opens it says what is wrong
        return
    if manifest.kind != "model" or not any(_is_link(directory / name) for name in manifest.files):
        yield directory
        return
    manifest.verify(directory)
    with scratch_dir(goal.absolute().parent, goal.name) as scratch:
        copy = scratch / "model"
        for name in (*manifest.files, FILE_NAME):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / name, copy / name)
        yield copy


def check_external_data(directory: Path, manifest: Manifest) -> None:
    """Check every recorded .onnx file of a verified directory, before anything follows its paths.

    Raises:
        BundleCorruptError: one is no ONNX file, or names a file that the manifest does not record.
    """
    for name in sorted(manifest.files):
        if not name.endswith(".onnx"):
            continue
        for external in OnnxHeader.read(directory / name).external_files:
            place = PurePosixPath(name).parent / external
            if place.is_absolute() or ".." in place.parts or place.as_posix() not in manifest.files:
                raise BundleCorruptError(
                    f"{directory / name} keeps weights in {external!r:.200}, which is none of the recorded files; "
                    "do not trust it."
                )


def _is_link(path: Path) -> bool:
    """Whether a file is a symbolic link, or has another name."""
    try:
        return path.is_symlink() or path.stat().st_nlink > 1
    except OSError:
        return False
