"""The builder of encoders for `ort-cpu`: lowered for ONNX Runtime's CPU kernels, compared, and described."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import ENCODER
from piston.core.bundle.manifest import EngineSpec, Manifest
from piston.core.console import Progress
from piston.engines.equivalence.packed_products import check_packed_products
from piston.engines.equivalence.ragged import check_ragged
from piston.engines.linear_work import ARITHMETIC, check_int8, linear_work
from piston.engines.lowering.int8_tables import Int8TablesPass
from piston.engines.lowering.integer_matmul import IntegerMatMulPass
from piston.engines.lowering.matmul_nbits import MatMulNBitsPass
from piston.engines.lowering.pack_linears import PackLinearsPass
from piston.engines.lowering.unsigned_activations import UnsignedActivationsPass
from piston.engines.ort.cpu_graph import count_operators, save_optimized
from piston.graph.upcast import Float32Pass


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


def build_encoder(
    target: str, source: Path, model: Manifest, work: Path, asked: Mapping[str, Any], progress: Progress
) -> EngineSpec:
    """Write the engine below `work`; raises as `piston.engines.build` does."""
    directory = work / target
    with progress.phase(f"lowering for {target}"):
        graph = ir.load(source / GRAPH)
        lower_encoder(graph)
        lowered = directory / "lowered"
        lowered.mkdir(parents=True)
        ir.save(graph, lowered / GRAPH, external_data=GRAPH_DATA)
        version = save_optimized(lowered / GRAPH, directory / GRAPH)
        shutil.rmtree(lowered)
        found = linear_work(ir.load(directory / GRAPH).graph)
    if asked["require_int8"] is not None:
        check_int8(found, asked["require_int8"])
    is_quantized = found.share("float") < 1
    with progress.phase("checking it against the canonical graph"):
        kernels = check_packed_products(directory / GRAPH)
        parity = check_ragged(
            source / GRAPH, directory / GRAPH, model.graphs[ENCODER], model, max_length=asked["max_length"]
        )
    return EngineSpec.of(
        target=target,
        path=(directory / GRAPH).relative_to(work).as_posix(),
        requested=dict(asked),
        actual={
            "dtype": "float32",
            "linears": {name: found.share(name) for name in ARITHMETIC},
            "linears_in_float": found.in_float if is_quantized else [],
            "not_fused": found.unfused,
            "operators": count_operators(directory / GRAPH),
            "weights_bytes": (directory / GRAPH_DATA).stat().st_size,
            "optimization": "extended",
            "onnxruntime": version,
            "max_positions": asked["max_length"],
            "parity": dataclasses.asdict(parity),
            "kernels": dataclasses.asdict(kernels),
        },
        graph=ENCODER,
    )
