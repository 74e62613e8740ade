"""The builder of encoders for `ort-cpu` and own kernels: lowered, compared, and described."""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import ENCODER
from piston.core.bundle.manifest import EngineSpec
from piston.engines.equivalence.packed_products import check_packed_products
from piston.engines.equivalence.ragged import check_ragged
from piston.engines.equivalence.replaced_in_texts import check_bfloat16, check_replaced_in_texts, has_same_bits
from piston.engines.equivalence.sparse_weights import check_sparse
from piston.engines.linear_work import ARITHMETIC, check_int8, linear_work, product_of
from piston.engines.lowering.int8_tables import Int8TablesPass
from piston.engines.lowering.integer_matmul import IntegerMatMulPass
from piston.engines.lowering.matmul_nbits import MatMulNBitsPass
from piston.engines.lowering.pack_linears import PackLinearsPass
from piston.engines.lowering.unsigned_activations import UnsignedActivationsPass
from piston.engines.options import BuildJob
from piston.engines.ort.cpu_graph import count_operators, save_optimized
from piston.engines.ort.cpu_kernels import build_kernels
from piston.graph.upcast import Float32Pass
from piston.runtime.kernels import TARGET


def lower_encoder(model: ir.Model) -> None:
    """Rewrite a canonical encoder graph, in place, into the form ONNX Runtime's CPU kernels run fastest."""
    ir.passes.Sequential(
        Float32Pass(),
        Int8TablesPass(),
        PackLinearsPass(),
        UnsignedActivationsPass(),
        IntegerMatMulPass(),
        MatMulNBitsPass(),
    )(model)


def build_encoder(job: BuildJob) -> EngineSpec:
    """Write the engine below `work`; raises as `piston.engines.build` does.

    That of Piston's own kernels is made from ONNX Runtime's, once this is compared, and compared with it.
    """
    if job.target != TARGET:
        return _build_plain(job)
    with tempfile.TemporaryDirectory(dir=job.work) as aside:
        plain = _build_plain(dataclasses.replace(job, target="ort-cpu", work=Path(aside)))
        return _build_kernels(plain, Path(aside), job)


def _build_kernels(plain: EngineSpec, aside: Path, job: BuildJob) -> EngineSpec:
    interface = job.model.graphs[ENCODER]
    with job.progress.phase(f"lowering for {TARGET}"):
        has_sparse = "sparse" in plain.actual and job.options.sparsity
        goal, in_bfloat16 = job.work / TARGET.replace(":", "-"), job.requested.get("dtype") == "bfloat16"
        built = build_kernels(aside / plain.path, goal, pack_sparse=has_sparse, in_bfloat16=in_bfloat16)
    with job.progress.phase("checking the kernels against what they replace"):
        longest = job.requested["max_length"]
        parity = check_replaced_in_texts(aside / plain.path, built.path, interface, job.model, max_length=longest)
        same_bits = has_same_bits(built.path, interface, job.model, max_length=longest)
        checks = {"parity": dataclasses.asdict(parity), "same_bits_in_batches": same_bits}
        if in_bfloat16:
            moved = check_bfloat16(aside / plain.path, built.path, interface, job.model, max_length=longest)
            checks["bfloat16_moved"] = moved
    got = built.describe(plain.actual, **checks)
    return EngineSpec.of(
        target=TARGET,
        path=built.path.relative_to(job.work).as_posix(),
        requested=dict(job.requested),
        actual=got | ({"dtype": "bfloat16"} if in_bfloat16 else {}),
        graph=ENCODER,
    )


def _build_plain(job: BuildJob) -> EngineSpec:
    directory = job.work / job.target
    with job.progress.phase(f"lowering for {job.target}"):
        graph = ir.load(job.source / GRAPH)
        lower_encoder(graph)
        lowered = directory / "lowered"
        lowered.mkdir(parents=True)
        ir.save(graph, lowered / GRAPH, external_data=GRAPH_DATA)
        version = save_optimized(lowered / GRAPH, directory / GRAPH)
        shutil.rmtree(lowered)
        found = linear_work(ir.load(directory / GRAPH).graph)
    if job.requested["require_int8"] is not None:
        check_int8(found, job.requested["require_int8"])
    is_quantized = found.share("float") < 1
    with job.progress.phase("checking it against the canonical graph"):
        kernels = check_packed_products(directory / GRAPH)
        sparse = check_sparse(ir.load(job.source / GRAPH).graph, ir.load(directory / GRAPH).graph, product_of)
        parity = check_ragged(
            job.source / GRAPH,
            directory / GRAPH,
            job.model.graphs[ENCODER],
            job.model,
            max_length=job.requested["max_length"],
        )
    return EngineSpec.of(
        target=job.target,
        path=(directory / GRAPH).relative_to(job.work).as_posix(),
        requested=dict(job.requested),
        actual={
            "dtype": "float32",
            "linears": {name: found.share(name) for name in ARITHMETIC},
            **({} if sparse is None else {"sparse": sparse.to_json()}),
            "linears_in_float": found.in_float if is_quantized else [],
            "not_fused": found.unfused,
            "operators": count_operators(directory / GRAPH),
            "weights_bytes": (directory / GRAPH_DATA).stat().st_size,
            "optimization": "extended",
            "onnxruntime": version,
            "max_positions": job.requested["max_length"],
            "parity": dataclasses.asdict(parity),
            "kernels": dataclasses.asdict(kernels),
        },
        graph=ENCODER,
    )
