"""One graph of a model while it is quantized: what of the recipe is about it, and what it is run on."""

import dataclasses
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.names import module_of
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.observe.saturation import Saturated
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.search.budget import BudgetResult


@dataclass(frozen=True, slots=True)
class Part:
    """A graph in float."""

    graph: ModelGraph
    recipe: Recipe
    rows: RowsLike | None


@dataclass(slots=True, kw_only=True)
class QuantizedPart:
    """What became of one; linears by name, in the order of the graph."""

    prepared: Prepared
    scales: Mapping[str, tuple[float, ...]] = field(default_factory=dict)  # of an INT8 cache
    spent: BudgetResult | None = None
    cost_alone: dict[str, float] = field(default_factory=dict)
    kept_in_float: tuple[str, ...] = ()
    saturated: dict[str, Saturated] = field(default_factory=dict)
    sparse: list[str] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    weight_only: list[str] = field(default_factory=list)
    remainders: dict[str, int] = field(default_factory=dict)


def recipes_of(recipe: Recipe, graphs: Sequence[ModelGraph]) -> list[Recipe]:
    """For each graph the recipe with those names and patterns that are about it, and those that no graph knows."""
    names = [[*graph.layer_names, *map(module_of, graph.layer_names)] for graph in graphs]
    known = [name for own in names for name in own]

    def about(patterns: tuple[str, ...], own: list[str]) -> tuple[str, ...]:
        return tuple(
            pattern for pattern in patterns if fnmatch.filter(own, pattern) or not fnmatch.filter(known, pattern)
        )

    return [
        dataclasses.replace(
            recipe,
            keep=about(recipe.keep, own),
            dense=about(recipe.dense, own),
            kept_in_float=about(recipe.kept_in_float, own),
            int8=None if recipe.int8 is None else about(recipe.int8, own),
        )
        for own in names
    ]
