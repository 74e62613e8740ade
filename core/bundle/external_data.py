"""Where graphs keep their weights: in recorded files of the same directory, or the directory is refused."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from piston.core.atomic_dir import scratch_dir
from piston.core.bundle.manifest import FILE_NAME, Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.errors import BundleCorruptError, BundleError, Error


@contextmanager
def plain_files(directory: Path, goal: Path) -> Iterator[Path]:
    """A model directory without links: itself, or a copy next to `goal` that exists as long as the block.

    onnx_ir refuses weights behind symbolic links and in files with a second hard link, because a graph could point
    anywhere. Package managers and the hub's cache create such directories. Here the manifest's hashes decide what is
    read. The copy temporarily takes the size of the model on disk; errors of the block name the directory in its place.

    Raises:
        BundleCorruptError: the directory has links, and a file differs from the recorded one.
        Error: the copy cannot be written.
    """
    try:
        manifest = Manifest.read(directory)
    except BundleError:
        yield directory  # the caller that opens it reports what is wrong
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
        try:
            yield copy
        except Error as problem:
            problem.args = tuple(str(word).replace(str(copy), str(directory)) for word in problem.args)
            raise


def check_external_data(directory: Path, manifest: Manifest) -> None:
    """Check every recorded .onnx file of a verified directory, before anything follows its paths.

    Raises:
        BundleCorruptError: one is not an ONNX file, or names a file that the manifest does not record.
    """
    for name in sorted(manifest.files):
        if not name.endswith(".onnx"):
            continue
        for external in OnnxHeader.read(directory / name).external_files:
            place = PurePosixPath(name).parent / external
            if place.is_absolute() or ".." in place.parts or place.as_posix() not in manifest.files:
                raise BundleCorruptError(
                    f"{directory / name} keeps weights in {external!r:.200}, which is not a recorded file; "
                    "do not trust it."
                )


def _is_link(path: Path) -> bool:
    """Whether a file is a symbolic link or has a second hard link."""
    try:
        return path.is_symlink() or path.stat().st_nlink > 1
    except OSError:
        return False
