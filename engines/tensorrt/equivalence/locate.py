"""Where two graphs part: both give out every value that they name alike, and the first to differ is found."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.engines.lowering.downcast import LARGEST, Float16RangeError
from piston.graph.tap import GraphTap, saved_beside

Array = NDArray[Any]
FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16}
LEAST = 1e-3  # of a value's largest: inside, float32 may be off by more than in the results that its bound is for


Values = Callable[[Path], Mapping[str, Array]]  # every output of a copy of a graph, on what the graph was given


def first_to_differ(canonical: tuple[Path, Values], lowered: tuple[Path, Values], relative: float) -> str:
    """A sentence that names the first node of `lowered` whose result is not the canonical graph's.

    Both graphs are run once more; the caches are as they are, and what is written there is written again.
    """
    shared = set(_named(canonical[0]))
    names = [name for name in _named(lowered[0]) if name in shared]
    expected, actual = (_values(path, names, run) for path, run in (canonical, lowered))
    producers = {str(output.name): node for node in ir.load(lowered[0]).graph for output in node.outputs}
    for name in names:
        want, got = expected[name].astype(np.float64), actual[name].astype(np.float64)
        if want.shape != got.shape:
            return f"{_described(producers[name])} has the shape {got.shape}, not {want.shape}."
        off = float(np.abs(want - got).max(initial=0)) / max(float(np.abs(want).max(initial=0)), 1e-6)
        if not off <= max(LEAST, relative):
            return f"The first to differ is {_described(producers[name])}, by {off:.2g} of its largest value."
    return "Every value that both name is the same: look at the nodes below next/."


@contextmanager
def exposed(canonical: Path, lowered: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """A copy of `canonical`, beside it, that gives out what `lowered` keeps in float16; the node of each such value.

    ONNX Runtime's CPU provider computes float16 in float32 and leaves out casts between two nodes, so that values
    inside a layer do not overflow there as they do on a GPU.
    """
    model, shared = ir.load(canonical), set(_named(canonical))
    nodes = {
        str(output.name): _described(node)
        for node in ir.load(lowered).graph
        for output in node.outputs
        if output.name in shared and output.dtype == ir.DataType.FLOAT16
    }
    GraphTap(model, nodes)
    with saved_beside(model, canonical, "exposed") as path:
        yield path, nodes


def check_range(narrow: Mapping[str, str], values: Mapping[str, Array], where: str) -> None:
    """Raise Float16RangeError for a value of `exposed` that is beyond float16; `where` says in which run."""
    for name, node in narrow.items():
        value = np.abs(values[name])
        if (largest := float(value.max(initial=0, where=np.isfinite(value)))) > LARGEST:  # infinity masks
            raise Float16RangeError(f"{where} {node} reaches {largest:.3g}")


def _described(node: ir.Node) -> str:
    return f"{node.name} ({node.op_type})"


def _named(path: Path) -> list[str]:
    """Floats that nodes make, in the order of the graph; caches are compared where they are read."""
    return [
        str(output.name)
        for node in ir.load(path).graph
        for output in node.outputs
        if output.name
        and output.dtype in FLOATS
        and node.op_type not in {"TensorScatter", "DequantizeLinear", "Transpose"}
    ]


def _values(path: Path, names: list[str], run: Values) -> Mapping[str, Array]:
    model = ir.load(path)
    GraphTap(model, names)
    with saved_beside(model, path, "located") as wide:
        return run(wide)
