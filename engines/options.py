"""What a build can be asked for, which each family of targets reads, and the job that a builder gets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.engines.tensorrt.compiler_options import CompilerOptions

LmHead = Literal["float32", "int8"]
LM_HEADS: tuple[LmHead, ...] = get_args(LmHead)
Precision = Literal["fp16", "bf16"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """Checked sizes, and None where the family decides."""

    max_batch: int
    max_length: int
    lm_head: LmHead | None = None
    require_int8: float | None = None
    sparsity: bool = True  # use that weights are 2:4 sparse, where the target can
    dtype: Precision | None = None  # of TensorRT engines
    compiler: CompilerOptions = field(default_factory=CompilerOptions)
    cache_dir: Path | None = None  # of compiled engines; None: every one is compiled

    @property
    def without_sparsity(self) -> dict[str, Any]:
        """For what the manifest records as requested: nothing by default."""
        return {} if self.sparsity else {"sparsity": False}


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildJob:
    """One engine to build."""

    target: str
    source: Path  # the model directory
    model: Manifest  # of it
    work: Path  # where the engine is written
    requested: Mapping[str, Any]  # as the target understood the options
    options: BuildOptions
    progress: Progress


def check_lm_head(model: Manifest, options: BuildOptions) -> None:
    """Raise MisuseError where the head of a language model is given an option, and the model has none."""
    if options.lm_head is not None and DECODER not in model.graphs:
        raise MisuseError(f"--lm-head is for language models; {model.model.name} is for {model.task}.")


Builder = Callable[[BuildJob], EngineSpec]
