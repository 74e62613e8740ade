"""Checks the outputs of a recipe before any work."""

import json
from pathlib import Path

from piston.core.atomic_dir import check_free
from piston.core.bundle.manifest import Manifest
from piston.core.errors import BundleError, MisuseError, OutputExistsError
from piston.core.outputs import check_output_files
from piston.pipeline.lock import check_lock_file
from piston.pipeline.plan import EVAL_PAGE, Checkpoint
from piston.pipeline.recipe import Recipe
from piston.pipeline.report import FILES, SBOM


def check_outputs(recipe: Recipe, path: Path, checkpoint: Checkpoint, pages: Path | None) -> None:
    """Refuse, before any work, outputs that would replace an input or files that Piston did not write.

    Raises:
        OutputExistsError: the path of the bundle, of the lock file or of the report holds something else.
        MisuseError: an output is, or contains, the recipe or the checkpoint; or two outputs overlap.
    """
    base = path.absolute().parent
    bundle, lock_path = base / recipe.output.bundle, base / recipe.output.lock
    reads = [path.absolute(), *checkpoint.reads]
    if bundle.exists() and not _is_bundle(bundle) and (bundle.is_file() or any(bundle.iterdir())):
        raise OutputExistsError(f"{bundle} exists and is not a bundle; remove it, or name another output.bundle.")
    check_free(bundle, overwrite=True, reads=reads)
    for name, place in (("output.lock", lock_path.parent), ("the report", pages)):
        if place is not None and place.resolve().is_relative_to(bundle.resolve()):
            raise MisuseError(
                f"{name.capitalize()} is inside the bundle {bundle}, which is replaced; name another path."
            )
    check_output_files({"output.lock": lock_path}, reads)
    check_lock_file(lock_path)
    if pages is not None:
        if pages.resolve() in [read.resolve() for read in checkpoint.reads]:
            raise MisuseError(f"The report would be written into the checkpoint {pages}; name another directory.")
        _check_pages(pages)
        names = (*FILES, SBOM, EVAL_PAGE) if pages.is_dir() else ()
        check_output_files({f"report {name}": pages / name for name in names}, [*reads, lock_path])


def _check_pages(pages: Path) -> None:
    """Refuse a directory in which a file of the report's would replace one that no run of `piston make` wrote."""
    try:
        data = json.loads((pages / FILES[0]).read_text(encoding="utf-8"))
        is_ours = isinstance(data, dict) and "recipe_sha256" in data
    except (OSError, ValueError, RecursionError):
        is_ours = False
    taken = next((name for name in (*FILES, SBOM, EVAL_PAGE) if (pages / name).exists()), None)
    if taken in {SBOM, EVAL_PAGE} and b"piston" in (pages / taken).read_bytes():
        return  # of a run that was interrupted before its report
    if taken is not None and not is_ours:
        raise OutputExistsError(
            f"{pages} holds {taken}, which `piston make` did not write; remove it, or name another directory for the "
            "report."
        )


def _is_bundle(path: Path) -> bool:
    try:
        return Manifest.read(path).kind == "bundle"
    except BundleError:
        return False
