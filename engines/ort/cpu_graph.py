"""A canonical graph becomes the file an ONNX Runtime CPU session loads and runs without further work."""

import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import StateType
from piston.core.machine import num_cores
from piston.engines.linear_work import ARITHMETIC, LinearWork, linear_work
from piston.engines.lowering import Lowered, lower_for_ort_cpu
from piston.engines.lowering.kernels.kernel_pass import KERNELS
from piston.runtime.backends.session import translated

EXTERNAL_FROM = 1024  # bytes: what is smaller stays in the graph
# These, and those of Q/DQ, move a QuantizeLinear to before the Transpose and Reshape around an attention that is not
# fused, where codes have other names, or put another pair there. Integer products are written down already.
MOVING = ["TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OrtBuild:
    """A written engine and what it is made of."""

    path: Path
    lowered: Lowered
    operators: dict[str, int]
    work: LinearWork
    weights_bytes: int
    onnxruntime: str

    @property
    def cache_type(self) -> StateType:
        """The type of every layer's keys and values."""
        return "int8" if self.lowered.int8_cache else "float32"

    @property
    def is_quantized(self) -> bool:
        """Whether some linear layer is in integers: then those in float are worth a list."""
        return self.work.share("float") < 1


def build_ort(canonical: Path, engine_dir: Path, max_length: int, *, int8_head: bool = False) -> OrtBuild:
    """Lower the graph at `canonical` and write engine_dir/model.onnx with its weights beside it.

    Weights pass through memory one at a time; the lowered graph takes its size on disk until ONNX Runtime has read it.

    Raises:
        EngineError: ONNX Runtime refuses the lowered graph.
    """
    model = ir.load(canonical)
    lowered = lower_for_ort_cpu(model, max_length, int8_head=int8_head)
    lowered_dir = engine_dir / "lowered"
    lowered_dir.mkdir(parents=True)
    ir.save(model, lowered_dir / GRAPH, external_data=GRAPH_DATA)
    path = engine_dir / GRAPH
    version = save_optimized(lowered_dir / GRAPH, path)
    shutil.rmtree(lowered_dir)
    return OrtBuild(
        path=path,
        lowered=lowered,
        operators=count_operators(path),
        work=linear_work(ir.load(path).graph),
        weights_bytes=(engine_dir / GRAPH_DATA).stat().st_size,
        onnxruntime=version,
    )


def save_optimized(source: Path, goal: Path) -> str:
    """Let ONNX Runtime write its own optimized form of a graph, and return its version.

    The level is EXTENDED: fusions that hold on every CPU (activations, biases into norms, constants). What ALL adds is
    the layout of this machine's vector units, which would tie the file to it; a decoder has nothing of that kind, and
    the two files were the same bytes (1.32).
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    settings.intra_op_num_threads = num_cores()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    settings.optimized_model_filepath = str(goal)
    settings.add_session_config_entry("session.disable_quant_qdq", "1")  # see MOVING
    prefix = "session.optimized_model_external_initializers"
    settings.add_session_config_entry(f"{prefix}_file_name", GRAPH_DATA)
    settings.add_session_config_entry(f"{prefix}_min_size_in_bytes", str(EXTERNAL_FROM))
    settings.add_session_config_entry("session.disable_prepacking", "1")  # it would copy every weight, for nothing
    with translated(f"optimizing {source}"):
        onnxruntime.InferenceSession(
            str(source), settings, providers=["CPUExecutionProvider"], disabled_optimizers=MOVING
        )
    _drop_unused_kernels(goal)
    return str(onnxruntime.__version__)


def _drop_unused_kernels(path: Path) -> None:
    """Leave the domain of Piston's operators out of a graph that has none of them.

    ONNX Runtime names every domain that the process knows (1.32), so a build would depend on what ran before it.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    named = [opset for opset in model.opset_import if opset.domain == KERNELS]
    if named and all(node.domain != KERNELS for node in model.graph.node):
        model.opset_import.remove(named[0])
        path.write_bytes(model.SerializeToString())


def count_operators(path: Path) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    counts = Counter(node.op_type for node in ir.load(path).graph)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def describe(build: OrtBuild) -> dict[str, Any]:
    """The build as the manifest records it."""
    lowered, work = build.lowered, build.work
    return {
        "dtype": "float32",
        "cache": build.cache_type,
        "attention_layers": lowered.attention,
        "attention_fused": lowered.fused_attention,
        "rotary_fused": lowered.fused_rotary,
        "qkv_packed": lowered.packed_qkv,
        "norms_fused": lowered.fused_norms,
        "not_lowered": lowered.refused,
        "linears": {name: work.share(name) for name in ARITHMETIC},
        "lm_head": next(iter(work.head), "unknown"),
        "linears_in_float": work.in_float if build.is_quantized else [],
        "not_fused": work.unfused,
        "operators": build.operators,
        "weights_bytes": build.weights_bytes,
        "optimization": "extended",
        "onnxruntime": build.onnxruntime,
    }
