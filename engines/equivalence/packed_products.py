"""The parity check of the quantized products: packed as they will run, each gives what it gives unpacked.

ONNX Runtime packs quantized weights when it loads them, and only then multiplies MatMulNBits in integers: activations
are rounded to INT8 block by block on the way (accuracy_level 4). Unpacked, the same node multiplies in float32. Every
such node of the engine is run both ways, on normal activations, with its own weights.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes import common

from piston.core.errors import ParityError
from piston.graph.pattern import static_dims
from piston.graph.tap import saved_beside
from piston.runtime.backends.session import OrtOptions, open_session, translated

# Relative L2 of a product. The largest of 128 normal activations is about 2.7 deviations, which makes the step of their
# codes 2.7 / 127, and a step's rounding error is 0.29 steps: 0.006 of the deviation. Three times that is no rounding.
BOUNDS = {"MatMulNBits": 2e-2, "MatMulIntegerToFloat": 1e-5}
SIZE_OF_ZEROS = 1e-3  # stands for the L2 norm of a product with weights that are all zero
ROWS = (1, 17)  # tokens at once: a decode step and a chunk take different paths


@dataclass(frozen=True, slots=True)
class PackedProductsParity:
    """How far packed and unpacked products are apart: recorded in the manifest."""

    products: int
    max_relative: float


def check_packed_products(lowered: Path) -> PackedProductsParity:
    """Run each quantized product of an engine packed and unpacked.

    Raises:
        ParityError: one is beyond its bound; the message names it.
    """
    model = ir.load(lowered)
    products = [node for node in model.graph if node.op_type in BOUNDS]
    if not products:
        return PackedProductsParity(0, 0.0)
    _isolate(model, products)
    with saved_beside(model, lowered, "products") as path:
        packed, plain = (_run(path, model.graph, prepack=prepack) for prepack in (True, False))
    worst = 0.0
    for index, node in enumerate(products * len(ROWS)):
        difference, size = np.linalg.norm(packed[index] - plain[index]), np.linalg.norm(plain[index])
        relative = float(difference / (size or SIZE_OF_ZEROS))
        if not relative <= BOUNDS[node.op_type]:
            raise ParityError(
                f"ONNX Runtime's {node.op_type} of {node.name} is {relative:.2g} of its size away from the product of "
                f"the same weights in float; allowed are {BOUNDS[node.op_type]:.2g}. Nothing was written."
            )
        worst = max(worst, relative)
    return PackedProductsParity(len(products), worst)


def _isolate(model: ir.Model, products: list[ir.Node]) -> None:
    """Leave the products alone in the graph, all of one width of activations reading one input."""
    graph = model.graph
    graph.inputs.clear()
    given: dict[tuple[str, int], ir.Value] = {}
    for node in products:
        kind = "codes" if node.op_type == "MatMulIntegerToFloat" else "floats"
        width = node.attributes["K"].as_int() if "K" in node.attributes else static_dims(node.inputs[1])[0]
        if (kind, width) not in given:
            dtype = ir.DataType.UINT8 if kind == "codes" else ir.DataType.FLOAT
            shape = ir.Shape(["rows", width])
            given[kind, width] = ir.Value(name=f"{kind}.{width}", type=ir.TensorType(dtype), shape=shape)
        node.replace_input_with(0, given[kind, width])
        node.outputs[0].shape = None
    graph.inputs.extend(given.values())
    graph.outputs[:] = [node.outputs[0] for node in products]
    common.RemoveUnusedNodesPass()(model)


def _run(path: Path, graph: ir.Graph, *, prepack: bool) -> list[NDArray[np.float32]]:
    session = open_session(path, OrtOptions(prepack=prepack))
    results: list[NDArray[np.float32]] = []
    for rows in ROWS:
        rng = np.random.default_rng(rows)
        feed = {value.name: _activations(value, rows, rng) for value in graph.inputs}
        with translated("proving its quantized products"):
            results += session.run(None, feed)
    return results


def _activations(value: ir.Value, rows: int, rng: np.random.Generator) -> NDArray[np.generic]:
    normal = rng.standard_normal((rows, static_dims(value)[1]))
    if value.dtype == ir.DataType.FLOAT:
        return normal.astype(np.float32)
    return np.clip(np.rint(128 + 64 * normal), 0, 255).astype(np.uint8)
