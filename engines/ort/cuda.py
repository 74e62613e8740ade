"""The builder of `ort-cuda`: lowered for ONNX Runtime's CUDA kernels, proved on the CPU kernels of the same names."""

import dataclasses
import tempfile
from pathlib import Path

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import ENCODER, StateType
from piston.core.bundle.manifest import EngineSpec
from piston.engines.equivalence.answers import check_parity, reference_of
from piston.engines.equivalence.half_precision import check_half_precision
from piston.engines.equivalence.same_graph import check_same
from piston.engines.equivalence.sparse_weights import check_sparse
from piston.engines.linear_work import ARITHMETIC, check_int8, linear_work, product_of
from piston.engines.lowering.ort_cuda import lower_encoder_for_ort_cuda, lower_for_ort_cuda
from piston.engines.options import BuildJob
from piston.engines.ort.cuda_target import DTYPE
from piston.engines.tensorrt.equivalence.batches import check_batches
from piston.engines.tensorrt.equivalence.lockstep import write_exposed


def build(job: BuildJob) -> EngineSpec:
    """Write work/ort-cuda/model.onnx; raises as `piston.engines.build` does.

    Proved are three things: its float32 reference against the canonical graph, that it is that but for casts, and its
    own answers in float16, on the CPU, against the reference's.
    """
    length, engine_dir = job.requested["max_length"], job.work / job.target
    engine_dir.mkdir(parents=True)
    wide = job.model.cache.with_dtype("float32")
    cache = job.model.cache.with_dtype(DTYPE)
    with tempfile.TemporaryDirectory(dir=job.work) as scratch:
        with job.progress.phase(f"lowering for {job.target}"):
            counts = _write(job.source / GRAPH, engine_dir, length, DTYPE)
            _write(job.source / GRAPH, Path(scratch), length, "float32")
        path, float32 = engine_dir / GRAPH, Path(scratch) / GRAPH
        graph = ir.load(path).graph
        mix = linear_work(graph)
        if job.requested["require_int8"] is not None:
            check_int8(mix, job.requested["require_int8"])
        with (
            job.progress.phase("checking it against the canonical graph"),
            reference_of(job.source / GRAPH, job.model, Path(scratch)) as reference,
        ):
            parity = check_parity(reference, float32, wide, max_length=length, windows=_windows(graph))
            check_same(float32, path)
            sparse = check_sparse(ir.load(job.source / GRAPH).graph, graph, product_of)
            narrow = check_half_precision(float32, wide, path, cache, max_length=length)
    got = {
        "dtype": DTYPE,
        "cache": DTYPE,
        "max_positions": length,
        "capacity": length,
        **counts,
        "linears": {name: mix.share(name) for name in ARITHMETIC},
        "lm_head": next(iter(mix.head), "unknown"),
        **({} if sparse is None else {"sparse": sparse.to_json()}),
        "weights_bytes": (engine_dir / GRAPH_DATA).stat().st_size,
        "parity": dataclasses.asdict(parity),
        "proof_narrow": dataclasses.asdict(narrow),
        "run_on_gpu": False,
    }
    return EngineSpec.of(
        target=job.target,
        path=path.relative_to(job.work).as_posix(),
        cache=cache,
        requested=dict(job.requested),
        actual=got,
    )


def build_encoder(job: BuildJob) -> EngineSpec:
    """Write work/ort-cuda/model.onnx of an encoder; raises as `piston.engines.build` does.

    Proved are the same three things as for a decoder, on ragged batches.
    """
    engine_dir, sizes = job.work / job.target, job.requested
    engine_dir.mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=job.work) as scratch:
        with job.progress.phase(f"lowering for {job.target}"):
            counts = _write_encoder(job.source / GRAPH, engine_dir, DTYPE)
            _write_encoder(job.source / GRAPH, Path(scratch), "float32")
        path, float32 = engine_dir / GRAPH, Path(scratch) / GRAPH
        graph = ir.load(path).graph
        mix = linear_work(graph)
        if sizes["require_int8"] is not None:
            check_int8(mix, sizes["require_int8"])
        with (
            job.progress.phase("checking it against the canonical graph"),
            reference_of(job.source / GRAPH, job.model, Path(scratch)) as reference,
        ):
            sparse = check_sparse(ir.load(job.source / GRAPH).graph, graph, product_of)
            exposed = write_exposed(reference, Path(scratch) / "exposed")
            check_same(float32, path)
            parities = [
                dataclasses.asdict(
                    check_batches(
                        exposed,
                        file,
                        job.model.graphs[ENCODER],
                        dtype,
                        vocab_size=job.model.model.vocab_size,
                        max_length=sizes["max_length"],
                    )
                )
                for file, dtype in ((float32, "float32"), (path, DTYPE))
            ]
    return EngineSpec.of(
        target=job.target,
        path=path.relative_to(job.work).as_posix(),
        requested=dict(sizes),
        actual={
            "dtype": DTYPE,
            "max_positions": sizes["max_length"],
            **counts,
            "linears": {name: mix.share(name) for name in ARITHMETIC},
            **({} if sparse is None else {"sparse": sparse.to_json()}),
            "weights_bytes": (engine_dir / GRAPH_DATA).stat().st_size,
            "parities": parities,
            "run_on_gpu": False,
        },
        graph=ENCODER,
    )


def _write_encoder(canonical: Path, out: Path, dtype: StateType) -> dict[str, int]:
    model = ir.load(canonical)
    counts = lower_encoder_for_ort_cuda(model, dtype)
    ir.save(model, out / GRAPH, external_data=GRAPH_DATA)
    return counts


def _write(canonical: Path, out: Path, max_length: int, dtype: StateType) -> dict[str, int]:
    model = ir.load(canonical)
    counts = lower_for_ort_cuda(model, max_length, dtype)
    ir.save(model, out / GRAPH, external_data=GRAPH_DATA)
    return counts


def _windows(graph: ir.Graph) -> tuple[int, ...]:
    found = (node.attributes.get("local_window_size") for node in graph)
    return tuple(sorted({item.as_int() for item in found if item is not None}))
