"""The target `ort-cuda`: what it can be asked for. cuda.py builds it, and alone needs onnx."""

from typing import Any

from piston.core.bundle.interface import DECODER, ENCODER, StateType
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.errors import EngineError, MisuseError
from piston.engines.options import BuildJob, BuildOptions, check_lm_head

TARGET = "ort-cuda"
DTYPE: StateType = "float16"


def check_ort_cuda(target: str) -> None:
    """Raise MisuseError for a target that names a GPU: ONNX Runtime chooses its kernels where it runs."""
    if target != TARGET:
        raise MisuseError(f"There is no target {target!r}; {TARGET} runs on every GPU that onnxruntime-gpu knows.")


def ask_ort_cuda(target: str, model: Manifest, options: BuildOptions) -> dict[str, Any]:
    """What the engine is built with; raises MisuseError for what it does not have."""
    check_lm_head(model, options)
    if options.lm_head == "int8":
        raise MisuseError(f"--lm-head int8 is not for {target}: its head is in {DTYPE}, or as it was calibrated.")
    return {"max_batch": options.max_batch, "max_length": options.max_length, "require_int8": options.require_int8}


def build_ort_cuda(job: BuildJob, graph: str = DECODER) -> EngineSpec:
    """Build the engine of the model's `graph`, decoder or encoder; raises as `piston.engines.build` does."""
    from piston.engines.lowering.downcast import Float16RangeError
    from piston.engines.ort import cuda

    try:
        return cuda.build_encoder(job) if graph == ENCODER else cuda.build(job)
    except Float16RangeError as problem:
        raise EngineError(
            f"{problem.what}, beyond float16, and {job.target} has no other type; fix: build with --target "
            "tensorrt-rtx or tensorrt and --dtype bf16, or for ort-cpu. Nothing was written."
        ) from None
