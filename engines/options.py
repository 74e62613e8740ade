"""What may be asked of a build: read by every family of targets, each of which refuses what it has not got."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

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
    dtype: Precision | None = None  # of TensorRT engines
    compiler: CompilerOptions = field(default_factory=CompilerOptions)
    cache_dir: Path | None = None  # of compiled engines; None: every one is compiled
