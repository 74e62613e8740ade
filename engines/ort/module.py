"""The builder of modules of one's own for `ort-cpu`: lowered, compared with the canonical graph, and described."""

import shutil

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.examples import EXAMPLES, read_examples
from piston.core.bundle.interface import MODULE
from piston.core.bundle.manifest import EngineSpec
from piston.engines.equivalence.module_examples import check_module
from piston.engines.equivalence.sparse_weights import check_sparse
from piston.engines.linear_work import ARITHMETIC, check_int8, linear_work, product_of
from piston.engines.options import BuildJob
from piston.engines.ort.cpu_graph import count_operators, save_optimized
from piston.engines.ort.encoder import lower_encoder
from piston.runtime.backends.session import OrtSession

CONVOLUTIONS = ("Conv", "FusedConv")


def build_module(job: BuildJob) -> EngineSpec:
    """Write the engine below `job.work`; raises as `piston.engines.build` does."""
    directory = job.work / job.target
    with job.progress.phase(f"lowering for {job.target}"):
        graph = ir.load(job.source / GRAPH)
        lower_encoder(graph)
        lowered = directory / "lowered"
        lowered.mkdir(parents=True)
        ir.save(graph, lowered / GRAPH, external_data=GRAPH_DATA)
        version = save_optimized(lowered / GRAPH, directory / GRAPH)
        shutil.rmtree(lowered)
        graph = ir.load(directory / GRAPH)
        found = linear_work(graph.graph)
        # Convolutions compute in float on what their codes stand for (docs/limits.md): no fusion was missed there.
        rounded = {value.name for node in graph.graph if node.op_type in CONVOLUTIONS for value in node.inputs if value}
    if job.requested["require_int8"] is not None:
        check_int8(found, job.requested["require_int8"])
    with job.progress.phase("checking it against the canonical graph"):
        examples = read_examples(job.source / EXAMPLES)
        sparse = check_sparse(ir.load(job.source / GRAPH).graph, ir.load(directory / GRAPH).graph, product_of)
        OrtSession.open(directory / GRAPH, job.model.graphs[MODULE]).close()
        worst = check_module(job.source / GRAPH, directory / GRAPH, job.model, examples)
    shutil.copyfile(job.source / EXAMPLES, job.work / EXAMPLES)
    data = directory / GRAPH_DATA
    return EngineSpec.of(
        target=job.target,
        path=(directory / GRAPH).relative_to(job.work).as_posix(),
        requested=dict(job.requested),
        actual={
            "dtype": "float32",
            "linears": {name: found.share(name) for name in ARITHMETIC},
            "linears_in_float": found.in_float if found.share("float") < 1 else [],
            "not_fused": {name: why for name, why in found.unfused.items() if name not in rounded},
            **({} if sparse is None else {"sparse": sparse.to_json()}),
            "operators": count_operators(directory / GRAPH),
            "weights_bytes": data.stat().st_size if data.is_file() else 0,
            "onnxruntime": version,
            "parity": {"max_abs": worst, "examples": len(examples)},
        },
        graph=MODULE,
    )
