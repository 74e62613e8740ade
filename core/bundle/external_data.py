"""Where the graphs of a directory keep their weights: in recorded files beside them, or the directory is refused."""

from pathlib import Path, PurePosixPath

from piston.core.bundle.manifest import Manifest
from piston.core.bundle.onnx_header import OnnxHeader
from piston.core.errors import BundleCorruptError


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
