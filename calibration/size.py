"""What the weights take on disk against what the scheme's bits promise."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir as ir

from piston.calibration.graph.convolutions import Convolution
from piston.calibration.graph.linears import Linear
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.embeddings import embedding_of
from piston.core.bundle import GRAPH, GRAPH_DATA, graph_dir
from piston.core.bundle.manifest import Manifest

BYTE = 8  # bits


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of the weights.

    `promised` by the bits of the scheme, scales not counted; `actual` in the files; `whole` in the float model's.
    """

    promised: int
    actual: int
    whole: int

    @property
    def excess(self) -> float:
        """What there is beyond what was promised, as a share of it."""
        return self.actual / self.promised - 1


def promised_bytes(
    graph: ir.Graph, linears: Iterable[Linear], recipe: Recipe, convolutions: Iterable[Convolution] = ()
) -> int:
    """Of a float graph's weights as the recipe's scheme would have them if it kept no layer.

    Scales are not counted: what they add is the scheme's to answer for, and so is a layer that stays in float.
    """
    linears = list(linears)
    bits = {linear.weight.name: recipe.grid_of(linear).bits for linear in linears if _is_layer(linear, recipe)}
    bits |= dict.fromkeys([each.weight.name for each in convolutions if recipe.scheme != "fp"], BYTE)
    heads = [linear.weight.name for linear in linears if linear.is_head]
    gather = embedding_of(graph)
    table = None if gather is None or gather.inputs[0] is None else gather.inputs[0].name
    total = 0.0
    for name, value in graph.initializers.items():
        assert value.const_value is not None
        uses = [recipe.head] * heads.count(name) + [recipe.embedding] * (name == table)
        wanted = {BYTE if storage == "int8" else BYTE * value.const_value.dtype.itemsize for storage in uses}
        wanted = wanted or {bits.get(name, BYTE * value.const_value.dtype.itemsize)}
        total += math.prod(value.const_value.shape.numpy()) * sum(wanted) / BYTE
    return int(total)


def actual_bytes(manifest: Manifest) -> int:
    """Of the files that hold the weights of all graphs."""
    folders = [graph_dir(graph, manifest.graphs) for graph in manifest.graphs]
    stems = [f"{folder}/" if folder else "" for folder in folders]
    files = manifest.files
    return sum((files.get(f"{stem}{GRAPH_DATA}") or files[f"{stem}{GRAPH}"]).size for stem in stems)


def _is_layer(linear: Linear, recipe: Recipe) -> bool:
    return recipe.scheme != "fp" and not linear.is_head and not linear.is_transposed
