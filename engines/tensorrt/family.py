"""TensorRT and TensorRT-RTX as families of targets: what they are asked for, and the cache in front of the builder."""

from typing import Any

from piston.core.bundle.interface import DECODER
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.errors import EngineError, MisuseError
from piston.engines.options import BuildJob, BuildOptions, check_lm_head
from piston.engines.tensorrt.target import AUTO, Target

DTYPES = {"fp16": "float16", "bf16": "bfloat16", None: AUTO}


def check_tensorrt(target: str) -> None:
    """Raise MisuseError for a target that cannot be."""
    Target.parse(target)


def ask_tensorrt(target: str, model: Manifest, options: BuildOptions) -> dict[str, Any]:
    """What the engine is built with.

    Raises:
        MisuseError: an option that this target does not have.
        EngineError: the scheme of the model does not run on it.
    """
    parsed = Target.parse(target)
    options.compiler.check(parsed)
    check_lm_head(model, options)
    if options.lm_head == "int8":
        raise MisuseError(f"--lm-head int8 is for ort-cpu; {target} keeps the head in the type of the engine.")
    if model.model.scheme.startswith("w4") and "sm75" in parsed.gpus:
        raise EngineError(
            f"{target} cannot read INT4 weights: sm75 has no such type. Leave sm75 out, or use w8 or w8a8."
        )
    if options.dtype == "bf16" and "sm75" in parsed.gpus:
        raise EngineError(f"{target} cannot compute in bfloat16: sm75 has no such type. Leave sm75 out, or use fp16.")
    return {
        "max_batch": options.max_batch,
        "max_length": options.max_length,
        "dtype": DTYPES[options.dtype],
        "require_int8": options.require_int8,
        "compiler": options.compiler.to_json(),
        **options.without_sparsity,
    }


def build_cached(job: BuildJob, graph: str = DECODER) -> EngineSpec:
    """Take the engine of a graph from the cache, or build it and put it there; raises as `build_tensorrt` does."""
    from piston.engines.tensorrt.build import build_tensorrt
    from piston.engines.tensorrt.engine_cache import EngineCache, key_of

    parsed = Target.parse(job.target)
    key = key_of(parsed, job.model, job.requested, graph)
    cache = None if job.options.cache_dir is None else EngineCache(job.options.cache_dir)
    if cache is not None and (spec := cache.take(key, job.work)) is not None:
        with job.progress.phase(f"taking {job.target} from the engine cache"):
            return spec
    spec = build_tensorrt(parsed, job, graph)
    if cache is not None:
        cache.put(key, job.work, spec)
    return spec
