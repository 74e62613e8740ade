"""Convolutions in INT8: kernels by output channel, and for w8a8 what they read by one static scale.

Kernels have eight bits in w4 too: they are few, and four bits are too few for one scale a channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.convolutions import Convolution
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.observe.observers import make_observer
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.residual import fine_scale
from piston.core.console import Progress
from piston.graph.pattern import producer
from piston.graph.qdq import dequantize_weight, quantize_activation
from piston.graph.rounding import Grid, Quantized, round_to_nearest

GRID = Grid(8)


@dataclass(frozen=True, slots=True)
class PreparedConvolutions:
    """Codes and scales of the convolutions that the recipe does not keep, by their names; scales by what they read."""

    weights: Mapping[str, Quantized] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)

    def insert(self, graph: ModelGraph) -> list[str]:
        """Write Q/DQ into the graph; returns their names in its order."""
        chosen = [each for each in graph.convolutions if each.name in self.weights]
        readers: dict[str, list[Convolution]] = {}
        for each in chosen:
            readers.setdefault(each.input_name, []).append(each)
            if each.weight.name in graph.model.graph.initializers:  # two may have one kernel
                _write(graph, each, self.weights[each.name])
        for name, group in readers.items():
            if name in self.scales:
                _quantize_input(graph, group, self.scales[name])
        return [each.name for each in chosen]


def prepare_convolutions(
    graph: ModelGraph, recipe: Recipe, rows: RowsLike | None, work: Path, progress: Progress
) -> PreparedConvolutions:
    """What each convolution would become."""
    chosen = recipe.chosen_convolutions(graph.convolutions)
    weights = {each.name: round_to_nearest(each.matrix, GRID) for each in chosen}
    if recipe.scheme != "w8a8" or not chosen:
        return PreparedConvolutions(weights)
    assert rows is not None
    observers = {name: make_observer(recipe.method, name) for name in dict.fromkeys(each.input_name for each in chosen)}
    graph.collect(rows, observers, work_dir=work / "convolutions", progress=progress, name="observing convolutions")
    scales = {name: fine_scale(float(observer.range().amax), 0) for name, observer in observers.items()}
    return PreparedConvolutions(weights, scales)


def _write(graph: ModelGraph, each: Convolution, quantized: Quantized) -> None:
    assert each.weight.const_value is not None
    shape = each.weight.const_value.shape.numpy()
    codes = quantized.codes.T.reshape(shape)
    dequantize_weight(graph.model.graph, each.weight.name or "", codes, quantized.scales[0], axis=0)


def _quantize_input(graph: ModelGraph, group: list[Convolution], scale: float) -> None:
    """One pair for all; that of linears of the same value is another, with their scale."""
    value = group[0].node.inputs[0]
    assert value is not None
    taken = any(producer(use.node.outputs[0], "QuantizeLinear") is not None for use in value.uses())
    readers = frozenset(each.node.name or "" for each in group)
    quantize_activation(graph.model.graph, value, scale, readers, suffix=".convolution" if taken else "")
