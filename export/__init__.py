"""A checkpoint becomes a model directory: canonical graph, manifest, tokenizer. The only folder that knows torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from piston.core.arguments import checked_arguments
from piston.core.atomic_dir import atomic_dir, check_free
from piston.core.bundle.interface import FloatType
from piston.core.bundle.manifest import Manifest
from piston.core.cache_dir import expand_user
from piston.core.console import Progress
from piston.core.tasks import task_module
from piston.export import tasks

if TYPE_CHECKING:
    from piston.export.job import ExportJob
    from piston.export.module import export_module as export_module

Dtype = Literal["auto", "fp32", "fp16", "bf16"]
DTYPES: dict[str, FloatType] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """How to export.

    `task` is what the model is for, by default what the checkpoint says.

    `context` is the number of positions, by default what the checkpoint was trained for; `chat_template` the name of
    one of several chat templates, by default "default".
    """

    task: str | None = None
    dtype: Dtype = "auto"
    context: int | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    overwrite: bool = False
    check_parity: bool = True


@checked_arguments
def export_model(
    source: str | Path, out: str | Path, options: ExportOptions | None = None, progress: Progress | None = None
) -> Manifest:
    """Export a checkpoint (directory, hub id or .gguf file) to the model directory `out`.

    Raises:
        CheckpointError: it cannot be read, or is of a kind that is not supported (UnsupportedModelError).
        ParityError: the graph does not answer as transformers does.
        MisuseError: there is no such task, or an option is not for it.
        OutputExistsError: `out` is there. In every case nothing is left at `out`.
    """
    from piston.checkpoint.checkpoint import locate
    from piston.export.job import ExportJob

    options, progress, out = options or ExportOptions(), progress or Progress(quiet=True), Path(out)
    check_free(out, overwrite=options.overwrite, reads=[expand_user(source)])
    if options.task is not None:
        task_module(tasks, options.task)  # one that there is not is told before anything is read
    checkpoint = locate(str(source), revision=options.revision, trust_remote_code=options.trust_remote_code)
    job = ExportJob(checkpoint, options, progress)
    reads = [checkpoint.directory / (checkpoint.gguf or "")]
    with atomic_dir(out, overwrite=options.overwrite, reads=reads) as work:
        manifest: Manifest = _module(job).export(job, work)
        return manifest


def _module(job: "ExportJob") -> Any:
    """The module of the task that was asked for, or that the checkpoint is for."""
    from piston.checkpoint.task import task_of

    found = job.checkpoint
    return task_module(tasks, job.options.task or task_of(found.directory / (found.gguf or "")))


def __getattr__(name: str) -> Any:
    """`export_module`, which needs torch, on first use."""
    if name != "export_module":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from piston.export.module import export_module

    return export_module
