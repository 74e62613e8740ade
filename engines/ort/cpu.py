"""The builder of `ort-cpu`: lowered for ONNX Runtime's CPU kernels, proved, and described for the manifest."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from piston.core.bundle import GRAPH
from piston.core.bundle.interface import DECODER, ENCODER, MODULE
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.errors import MisuseError
from piston.engines.options import BuildJob, BuildOptions, check_lm_head
from piston.runtime.kernels import TARGET, require


def check_ort_cpu(target: str) -> None:
    """Raise MisuseError for a target that names a machine; EngineError or MissingExtraError without the kernels.

    ONNX Runtime chooses its kernels where it runs; Piston's own are a target of their own.
    """
    if target not in ("ort-cpu", TARGET):
        raise MisuseError(
            f"There is no target {target!r}; ort-cpu runs on every CPU, {TARGET} on Piston's own kernels."
        )
    if target == TARGET:
        require()


def ask_ort_cpu(target: str, model: Manifest, options: BuildOptions) -> dict[str, Any]:
    """What the engine is built with."""
    check_lm_head(model, options)
    asked = {"require_int8": options.require_int8, **(options.without_sparsity if target == TARGET else {})}
    if options.dtype is not None and target == TARGET:
        if {*model.graphs} != {ENCODER} or options.dtype != "bf16":
            raise MisuseError(
                f"{target} takes --dtype bf16, of encoders alone; {model.model.name} is for {model.task}."
            )
        asked["dtype"] = "bfloat16"
    if DECODER not in model.graphs:
        sizes = {} if MODULE in model.graphs else {"max_batch": options.max_batch, "max_length": options.max_length}
        return {**sizes, **asked}
    # fp+kv8 is float, too
    default = "float32" if model.model.scheme.partition("+")[0] == "fp" else "int8"
    return {
        "max_batch": options.max_batch,
        "max_length": options.max_length,
        "lm_head": options.lm_head or default,
        **asked,
    }


def build_ort_cpu(job: BuildJob) -> EngineSpec:
    """Write the engine below `work`; raises as `piston.engines.build` does.

    That of Piston's own kernels is made from ONNX Runtime's, once this is proved, and proved against it.
    """
    if job.target != TARGET:
        return _build_plain(job)
    with tempfile.TemporaryDirectory(dir=job.work) as aside:
        plain = _build_plain(dataclasses.replace(job, target="ort-cpu", work=Path(aside)))
        return _build_kernels(plain, Path(aside), job)


def _build_kernels(plain: EngineSpec, aside: Path, job: BuildJob) -> EngineSpec:
    from piston.engines.equivalence.replaced_nodes import check_replaced
    from piston.engines.ort.cpu_kernels import build_kernels

    with job.progress.phase(f"lowering for {TARGET}"):
        has_sparse = "sparse" in plain.actual and job.options.sparsity
        built = build_kernels(aside / plain.path, job.work / TARGET.replace(":", "-"), pack_sparse=has_sparse)
    with job.progress.phase("checking the kernels against what they replace"):
        parity = check_replaced(
            aside / plain.path,
            built.path,
            plain.cache,
            max_length=job.requested["max_length"],
            cross=job.model.cross,
        )
    got = built.describe(plain.actual, parity=dataclasses.asdict(parity))
    path = built.path.relative_to(job.work).as_posix()
    return EngineSpec.of(target=TARGET, path=path, cache=plain.cache, requested=dict(job.requested), actual=got)


def _build_plain(job: BuildJob) -> EngineSpec:
    import onnx_ir as ir

    from piston.engines.equivalence.answers import check_parity, reference_of
    from piston.engines.equivalence.packed_products import check_packed_products
    from piston.engines.equivalence.sparse_weights import check_sparse
    from piston.engines.linear_work import check_int8, product_of
    from piston.engines.ort.cpu_graph import build_ort, describe

    int8_head = job.requested["lm_head"] == "int8"
    with job.progress.phase(f"lowering for {job.target}"):
        built = build_ort(job.source / GRAPH, job.work / job.target, job.requested["max_length"], int8_head=int8_head)
    if job.requested["require_int8"] is not None:
        check_int8(built.work, job.requested["require_int8"])
    with (
        job.progress.phase("checking it against the canonical graph"),
        reference_of(job.source / GRAPH, job.model, job.work, int8_head=int8_head) as path,
    ):
        kernels = check_packed_products(built.path)
        sparse = check_sparse(ir.load(job.source / GRAPH).graph, ir.load(built.path).graph, product_of)
        cache = job.model.cache.with_dtype(built.cache_type)
        parity = check_parity(
            path,
            built.path,
            cache,
            max_length=job.requested["max_length"],
            windows=built.lowered.windows,
            cross=job.model.cross,
        )
    return EngineSpec.of(
        target=job.target,
        path=built.path.relative_to(job.work).as_posix(),
        cache=cache,
        requested=dict(job.requested),
        actual={
            **describe(built),
            **({} if sparse is None else {"sparse": sparse.to_json()}),
            "max_positions": job.requested["max_length"],
            "parity": dataclasses.asdict(parity),
            "kernels": dataclasses.asdict(kernels),
        },
    )
