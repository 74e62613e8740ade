"""w8 and w4: codes for the weights, activations left in float; rounded to nearest, by GPTQ or by AWQ."""

from pathlib import Path

from piston.calibration.float_graph import ModelGraph
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.awq import round_aware
from piston.calibration.schemes.layerwise_gptq import round_in_turn
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.w8a8 import weight_of
from piston.core.console import Progress
from piston.graph.rounding import round_to_nearest


def round_weights(graph: ModelGraph, recipe: Recipe, rows: RowsLike | None, work: Path, progress: Progress) -> Prepared:
    """Codes for the chosen linears' weights. GPTQ and AWQ need rows, rounding to nearest none."""
    if recipe.rounding != "nearest":
        assert rows is not None
        rounder = round_in_turn if recipe.rounding == "gptq" else round_aware
        return rounder(graph, recipe, rows, work, progress)
    chosen = recipe.chosen(graph.linears, graph.convolutions)
    return Prepared({linear.name: round_to_nearest(weight_of(linear), recipe.grid_of(linear)) for linear in chosen})
