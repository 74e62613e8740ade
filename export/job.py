"""One export under way: what was asked, and what every task writes alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir as ir

from piston.checkpoint.checkpoint import Checkpoint, weights_dtype
from piston.checkpoint.weight_files import StoredTensor
from piston.core.bundle import GRAPH, GRAPH_DATA
from piston.core.bundle.interface import FloatType
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.export import DTYPES, ExportOptions
from piston.export.passes import canonicalize
from piston.export.passes.cast_precision import CastPrecisionPass


@dataclass(slots=True)
class ExportJob:
    """What a task's `export` works on."""

    checkpoint: Checkpoint
    options: ExportOptions
    progress: Progress
    remarks: list[str] = field(default_factory=list)  # what the person who exports should know

    def dtype_of(self, stored: dict[str, StoredTensor]) -> FloatType:
        """The type to write: what was asked for, or what the files store."""
        wanted, remark = weights_dtype(self.checkpoint, stored)
        if remark is not None and self.options.dtype == "auto":
            self.remarks.append(remark)
        return DTYPES.get(self.options.dtype, wanted)

    def provenance(self, parity: dict[str, Any] | None) -> dict[str, Any]:
        """The manifest's `made_by`."""
        return provenance_of(self.checkpoint.hashes(), self.checkpoint.revision, parity, self.remarks)


def provenance_of(
    hashes: Mapping[str, str], revision: str | None, parity: Mapping[str, Any] | None, remarks: list[str]
) -> dict[str, Any]:
    """The manifest's `made_by`: the hashes of what was read, and the tools."""
    tools = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")
    return {
        "stage": "export",
        "piston": version("piston"),
        "source": {"revision": revision, "sha256": dict(hashes)},
        "tools": {name: version(name) for name in tools},
        "parity": parity,
        "remarks": remarks,
    }


def check_positions(positions: int, least: int) -> None:
    """Raise MisuseError, before any graph is traced, for fewer positions than the shortest use of the model takes."""
    if positions < least:
        raise MisuseError(
            f"{positions} position{'s are' if positions > 1 else ' is'} too few to use the model; export with "
            f"--context {least} or more."
        )


def save_graph(graph: ir.Model, work: Path, stack: str = "", passes: Sequence[ir.passes.InPlacePass] = ()) -> None:
    """Write a traced graph in its canonical form to the directory `work`; `stack` as of NameTensorsPass.

    `passes` follow those of every graph.
    """
    canonicalize(graph, stack)
    for each in passes:
        each(graph)
    work.mkdir(exist_ok=True)
    ir.save(graph, work / GRAPH, external_data=GRAPH_DATA)
    # onnxscript 0.7's rewrite rules, which live as long as the process, remember the last graph they matched.
    for value in graph.graph.initializers.values():
        value.const_value = None


def round_graph(work: Path, dtype: str, *, widen: bool = True) -> None:
    """Replace the float32 graph, compared before, by its rounding; the weights pass through memory one at a time.

    With `widen` its first output stays in float32.
    """
    graph = ir.load(work / GRAPH)
    CastPrecisionPass(dtype, widen=widen)(graph)
    narrow = work / "narrow"
    narrow.mkdir()
    ir.save(graph, narrow / GRAPH, external_data=GRAPH_DATA)
    for name in (GRAPH, GRAPH_DATA):
        (narrow / name).replace(work / name)
    narrow.rmdir()
