"""What an encoder's engine is built of: its file and float32 reference, the check of both, its profile and sizes."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import BATCH, ENCODER, SOURCE, GraphInterface, StateType
from piston.core.bundle.manifest import Manifest
from piston.engines.equivalence.same_graph import check_same
from piston.engines.tensorrt.allowed import check_file
from piston.engines.tensorrt.equivalence.attention_function import write_executable
from piston.engines.tensorrt.equivalence.batches import BatchParity, check_batches
from piston.engines.tensorrt.lowering import lower_encoder_for_tensorrt
from piston.engines.tensorrt.profiles import Shapes, shapes_of

LIKELY = 128  # tokens that kernels are chosen for: most texts are shorter than what a model reads


@dataclass(frozen=True, slots=True)
class LoweredEncoder:
    """A file for the compiler and its float32 reference."""

    path: Path
    float32: Path
    dtype: StateType
    interface: GraphInterface
    max_batch: int  # rows of one run; one where the graph is the encoder of a decoder, which admits row after row
    max_length: int

    @property
    def cache(self) -> None:
        """An encoder keeps nothing."""


def write_encoder(canonical: Path, model: Manifest, out: Path, asked: Mapping[str, Any]) -> LoweredEncoder:
    """Write out/file/model.onnx in the asked type, and out/float32/model.onnx in float32."""
    paths, dtypes = [], dict[str, StateType](file=asked["dtype"], float32="float32")
    for name, dtype in dtypes.items():
        graph = ir.load(canonical)
        lower_encoder_for_tensorrt(graph, dtype)
        check_file(graph.graph)
        (out / name).mkdir()
        ir.save(graph, out / name / GRAPH, external_data=GRAPH_DATA)
        paths.append(out / name / GRAPH)
    interface = model.graphs[ENCODER]
    is_source = any(tensor.role == "cross_state" for tensor in interface.outputs)
    max_batch = 1 if is_source else asked["max_batch"]
    return LoweredEncoder(paths[0], paths[1], asked["dtype"], interface, max_batch, asked["max_length"])


def prove_encoder(reference: Path, model: Manifest, lowered: LoweredEncoder) -> list[dict[str, Any]]:
    """The float32 file against the reference, the file against that, and the file, executed, against the reference."""
    sizes = {"vocab_size": model.model.vocab_size, "max_length": lowered.max_length}
    parities = [_checked(reference, lowered.float32, lowered.interface, "float32", sizes)]
    check_same(lowered.float32, lowered.path)
    executable = lowered.path
    if lowered.dtype == "bfloat16":
        from piston.engines.tensorrt.equivalence.simulate import write_simulated

        executable = write_simulated(lowered.path, lowered.path.parent.with_name("simulated"))
    parities.append(_checked(reference, executable, lowered.interface, lowered.dtype, sizes))
    if executable is not lowered.path:
        shutil.rmtree(executable.parent)
    return [dataclasses.asdict(parity) for parity in parities]


def _checked(
    reference: Path, file: Path, interface: GraphInterface, dtype: StateType, sizes: dict[str, int]
) -> BatchParity:
    executable = write_executable(file, file.with_name("executable.onnx"))
    try:
        return check_batches(reference, executable, interface, dtype, **sizes)
    finally:
        executable.unlink()


def encoder_profiles(graph: ir.Graph, lowered: LoweredEncoder) -> dict[str, Shapes]:
    """One profile: up to `max_batch` rows of up to `max_length` tokens."""
    likely = min(LIKELY, lowered.max_length)
    sizes = [
        {BATCH: rows, "seq": length, SOURCE: length}
        for rows, length in ((1, 1), (lowered.max_batch, likely), (lowered.max_batch, lowered.max_length))
    ]
    return {"rows": shapes_of(graph, sizes)}


def encoder_sizes(lowered: LoweredEncoder, graph: ir.Graph) -> dict[str, Any]:
    """What the manifest states."""
    del graph
    return {"dtype": lowered.dtype, "max_batch": lowered.max_batch, "max_positions": lowered.max_length}
