"""A model directory becomes a plan: lowered, proved on ONNX Runtime, compiled, and described for the manifest."""

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import DECODER, ENCODER, CacheSpec, StateType
from piston.core.bundle.manifest import EngineSpec, Manifest, sha256_of
from piston.core.bundle.plan_header import PlanHeader
from piston.engines.equivalence.answers import reference_of
from piston.engines.equivalence.same_graph import check_same
from piston.engines.linear_work import ARITHMETIC, LinearWork, check_int8
from piston.engines.lowering.downcast import Float16RangeError
from piston.engines.lowering.window_mask import window_of
from piston.engines.options import BuildJob
from piston.engines.tensorrt.allowed import check_file
from piston.engines.tensorrt.compile import Compiled, compile_plan
from piston.engines.tensorrt.encoder import encoder_profiles, encoder_sizes, prove_encoder, write_encoder
from piston.engines.tensorrt.equivalence.answers import Parity, check_parity
from piston.engines.tensorrt.equivalence.lockstep import write_exposed
from piston.engines.tensorrt.lowering import MAX_TOP_K, Sizes, lower_for_tensorrt, vocab_size
from piston.engines.tensorrt.profiles import Shapes, profiles_of
from piston.engines.tensorrt.target import AUTO, Target

PLAN = "engine.plan"


@dataclass(frozen=True, slots=True)
class LoweredFile:
    """A file for the compiler and its float32 reference."""

    path: Path
    float32: Path
    cache: CacheSpec
    sizes: Sizes
    window: int
    cross: CacheSpec  # over the source, in the type of the cache; no states where there is no encoder


@dataclass(frozen=True, slots=True)
class _Kind:
    """How the graphs of one name are built."""

    write: Callable[[Path, Manifest, Path, Mapping[str, Any]], Any]  # the file for the compiler, and its reference
    prove: Callable[[Path, Manifest, Any], list[dict[str, Any]]]
    profiles: Callable[[ir.Graph, Any], dict[str, Shapes]]
    sizes: Callable[[Any, ir.Graph], dict[str, Any]]  # for the manifest


def build_tensorrt(target: Target, job: BuildJob, graph: str = DECODER) -> EngineSpec:
    """Write work/<target>/engine.plan of the model's `graph`, decoder or encoder, and describe it.

    Where no type was asked for, it is float16, which has three bits more than bfloat16 and which every GPU has; and
    bfloat16 where the model's values go beyond float16: `dtype_reason` of what was got then says which.

    Raises:
        Float16RangeError: they do, and the target or what was asked leaves no other type.
        EngineError: the model has no form for TensorRT, or the compiler refuses it.
        MissingExtraError: the compiler is not installed.
        ParityError: the lowered file does not answer as the canonical graph; the message names the node.
        ShortfallError: fewer linear layers are in INT8 than was asked.
    """
    dtype: StateType = "float16" if job.requested["dtype"] == AUTO else job.requested["dtype"]
    try:
        return _build(target, job, dtype, graph)
    except Float16RangeError as problem:
        if job.requested["dtype"] != AUTO or "sm75" in target.gpus:  # which has no bfloat16
            raise
        reason = f"{problem.what}, beyond float16"
    spec = _build(target, job, "bfloat16", graph)
    return dataclasses.replace(spec, actual={**spec.actual, "dtype_reason": reason})


def _build(target: Target, job: BuildJob, dtype: StateType, name: str) -> EngineSpec:
    from piston.engines.equivalence.sparse_weights import check_sparse
    from piston.engines.tensorrt.precision_mix import product_of

    engine_dir, kind = job.work / target.directory, _KINDS[name]
    with tempfile.TemporaryDirectory(dir=job.work, prefix="lowered.") as scratch:
        with job.progress.phase(f"lowering for {target.text}"):
            lowered = kind.write(job.source / GRAPH, job.model, Path(scratch), {**job.requested, "dtype": dtype})
        graph = ir.load(lowered.path).graph
        mix = precision_of(graph, job.requested)
        with (
            job.progress.phase("checking it against the canonical graph"),
            reference_of(job.source / GRAPH, job.model, Path(scratch)) as reference,
        ):
            sparse = check_sparse(ir.load(job.source / GRAPH).graph, graph, product_of)
            parities = kind.prove(write_exposed(reference, Path(scratch) / "exposed"), job.model, lowered)
        profiles = kind.profiles(graph, lowered)
        engine_dir.mkdir(parents=True)
        plan = engine_dir / PLAN
        with job.progress.phase(f"compiling for {target.text}"):
            allowed = dataclasses.replace(
                job.options.compiler, sparse_weights=sparse is not None and job.options.sparsity
            )
            compiled = compile_plan(lowered.path, plan, target, profiles, allowed, job.progress)
        got = {
            **_identity(plan, compiled, target),
            **kind.sizes(lowered, graph),
            "profiles": profiles,
            "io": _interface(graph),
            "onnx_sha256": sha256_of(lowered.path),
            "plan_sha256": sha256_of(plan),
            "linears": {name: mix.share(name) for name in ARITHMETIC},
            **({"lm_head": next(iter(mix.head), "unknown")} if name == DECODER else {}),
            **({} if sparse is None else {"sparse": sparse.to_json()}),
            "operators": _operators(graph),
            "weights_bytes": lowered.path.with_name(GRAPH_DATA).stat().st_size,
            "plan_bytes": compiled.plan_bytes,
            "layers": compiled.layers,
            "parity": parities[-1],
            "parities": parities,
        }
    return EngineSpec.of(
        target=target.text,
        path=plan.relative_to(job.work).as_posix(),
        cache=lowered.cache,
        requested=dict(job.requested),
        actual=got,
        graph=name,
    )


def write_lowered(canonical: Path, model: Manifest, out: Path, asked: Mapping[str, Any]) -> LoweredFile:
    """Write out/file/model.onnx in the asked type, and out/float32/model.onnx in float32."""
    dtype: StateType = asked["dtype"]
    cache, cross = model.cache.with_dtype(dtype), model.cross.with_dtype(dtype)
    sizes = Sizes.of(cache, asked["max_batch"], asked["max_length"], cross)
    paths = []
    for name, kind in (("file", dtype), ("float32", "float32")):
        graph = ir.load(canonical)
        window = max((window_of(node.inputs[3]) or 0 for node in graph.graph if _is_masked(node)), default=0)
        lower_for_tensorrt(graph, sizes, kind)
        check_file(graph.graph)
        (out / name).mkdir()
        ir.save(graph, out / name / GRAPH, external_data=GRAPH_DATA)
        paths.append(out / name / GRAPH)
    return LoweredFile(paths[0], paths[1], cache, sizes, window, cross)


def prove_file(reference: Path, model: Manifest, lowered: LoweredFile) -> list[dict[str, Any]]:
    """The float32 file against the reference, the file against that, and the file, executed, against the reference."""
    wide = model.cache.with_dtype("float32")
    compared = partial(check_parity, window=lowered.window, cross=model.cross.with_dtype("float32"))
    parities: list[Parity] = [compared(reference, lowered.float32, wide, lowered.sizes, "float32")]
    check_same(lowered.float32, lowered.path)
    executable = lowered.path
    dtype = lowered.cache.dtype
    if dtype == "bfloat16":
        from piston.engines.tensorrt.equivalence.simulate import write_simulated

        executable = write_simulated(lowered.path, lowered.path.parent.with_name("simulated"))
    parities.append(compared(reference, executable, wide, lowered.sizes, dtype))
    if executable is not lowered.path:
        shutil.rmtree(executable.parent)
    return [dataclasses.asdict(parity) for parity in parities]


def precision_of(graph: ir.Graph, asked: Mapping[str, Any]) -> LinearWork:
    """The precision mix; raises ShortfallError if less is in INT8 than was asked."""
    from piston.engines.tensorrt.precision_mix import precision_mix

    mix = precision_mix(graph)
    if asked["require_int8"] is not None:
        check_int8(mix, asked["require_int8"])
    return mix


def _is_masked(node: ir.Node) -> bool:
    return node.op_type == "Attention" and len(node.inputs) > 3  # noqa: PLR2004


def _identity(plan: Path, compiled: Compiled, target: Target) -> dict[str, Any]:
    header = PlanHeader.read(plan)
    return {
        "compiler": target.module,
        "compiler_version": compiled.compiler_version,
        "compute_capabilities": list(header.compute_capabilities or target.gpus),
    }


def _sizes(lowered: LoweredFile, graph: ir.Graph) -> dict[str, Any]:
    sizes = lowered.sizes
    return {
        "dtype": lowered.cache.dtype,
        "cache": lowered.cache.dtype,
        "max_batch": sizes.max_batch,
        "max_positions": sizes.max_length,
        "capacity": sizes.capacity,
        "chunk": sizes.chunk,
        "max_logits": sizes.max_logits,
        **({"max_source": sizes.source} if sizes.source else {}),
        "max_top_k": min(MAX_TOP_K, vocab_size(graph)),
        "vocab_size": vocab_size(graph),
    }


def _interface(graph: ir.Graph) -> dict[str, Any]:
    return {
        str(value.name): {
            "mode": mode,
            "dtype": str(value.dtype.numpy() if value.dtype != ir.DataType.BFLOAT16 else "bfloat16"),  # type: ignore[union-attr]
            "shape": [dim if isinstance(dim, int) else str(dim) for dim in value.shape],  # type: ignore[union-attr]
        }
        for mode, values in (("input", graph.inputs), ("output", graph.outputs))
        for value in values
    }


def _operators(graph: ir.Graph) -> dict[str, int]:
    from collections import Counter

    counts = Counter(node.op_type for node in graph)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


_KINDS = {
    DECODER: _Kind(write_lowered, prove_file, lambda graph, lowered: profiles_of(graph, lowered.sizes), _sizes),
    ENCODER: _Kind(write_encoder, prove_encoder, encoder_profiles, encoder_sizes),
}
