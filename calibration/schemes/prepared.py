"""What each linear would become, and the writing of those that were chosen into the graph."""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import Linear
from piston.calibration.graph.qdq import QuantizeActivationsPass, QuantizeWeightsPass
from piston.calibration.schemes.outliers import Channels, add_outliers
from piston.calibration.schemes.residual import add_remainder
from piston.graph.rounding import Quantized


@dataclass(frozen=True, slots=True)
class Prepared:
    """Codes and scales of a graph that is still in float: any of its linears can be quantized, and the rest left.

    What a linear becomes does not depend on which others are written. It may depend on which are here: GPTQ makes up in
    one layer for the errors of those before it, also of one that is left out afterwards.
    """

    weights: Mapping[str, Quantized]  # by the linear's name
    kept: Mapping[str, Quantized] = field(default_factory=dict)  # what a linear has that is not chosen; else its floats
    scales: Mapping[str, float] = field(default_factory=dict)  # of activations, by the name of what linears read
    ratios: Mapping[str, int] = field(default_factory=dict)  # of the scales of their remainders, where those have any
    errors: Mapping[str, float] = field(default_factory=dict)  # of each linear's output, see `sensitivity`; worst first

    def outliers(self, linears: Iterable[Linear]) -> dict[str, Channels]:
        """By the name of what linears read: the channels that stay in float."""
        known = {linear.input_name: self.weights[linear.name] for linear in linears if linear.name in self.weights}
        return {name: weight.outliers.channels for name, weight in known.items() if weight.outliers is not None}

    def insert(self, graph: ModelGraph, chosen: Container[str]) -> list[str]:
        """Write Q/DQ into the graph for the chosen linears; returns their names in the order of the graph.

        Others get a weight of `kept` where there is one, and read their activations in float.
        """
        linears = [linear for linear in graph.linears if linear.name in self.weights and linear.name in chosen]
        readers: dict[str, list[str]] = {}
        for linear in linears:
            if linear.input_name in self.scales:
                readers.setdefault(linear.input_name, []).append(linear.matmul.name or "")
        names = {linear.name for linear in linears}
        alone = [linear for linear in graph.linears if linear.name in self.kept and linear.name not in names]
        weights = {linear.weight.name or "": self.kept[linear.name] for linear in alone}
        weights |= {linear.weight.name or "": self.weights[linear.name] for linear in linears}
        for linear in linears:
            if (outliers := self.weights[linear.name].outliers) is not None:
                add_outliers(linear, outliers)
        QuantizeWeightsPass(weights)(graph.model)
        read = {linear.name: linear.input for linear in linears}
        QuantizeActivationsPass({name: self.scales[name] for name in readers}, readers)(graph.model)
        for linear in linears:
            name = read[linear.name].name or ""
            if name in self.ratios:
                add_remainder(linear, read[linear.name], self.scales[name] * self.ratios[name])
        return [linear.name for linear in linears]
