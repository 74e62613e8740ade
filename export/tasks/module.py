"""Modules of one's own have no checkpoint: `piston.export.export_module` exports them from Python."""

from pathlib import Path

from piston.core.bundle.manifest import Manifest
from piston.core.errors import MisuseError
from piston.export.job import ExportJob

TASK = "module"


def export(job: ExportJob, work: Path) -> Manifest:
    """Raise MisuseError: a checkpoint does not say how a module is made."""
    del work
    raise MisuseError(
        f"{job.checkpoint.name} is a checkpoint, and a module is exported from Python: piston.export.export_module "
        "(docs/tasks.md)."
    )


def summary(manifest: Manifest) -> str:
    """How near the graph is to the module."""
    parity = manifest.made_by["parity"]
    return f"outputs within {parity['max_abs']:.1e} of the module's at {len(parity['sizes'])} sizes"
