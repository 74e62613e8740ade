"""w8 and w4: codes for the weights, activations left in float; rounded to nearest, by GPTQ or by AWQ."""

from pathlib import Path

from piston.calibration.awq import round_aware
from piston.calibration.graph import ModelGraph
from piston.calibration.integer import weight_of
from piston.calibration.packing import Ids
from piston.calibration.prepared import Prepared
from piston.calibration.recipe import Recipe
from piston.calibration.rounding import round_to_nearest
from piston.calibration.sequential import round_in_turn
from piston.runtime.console import Progress


def round_weights(graph: ModelGraph, recipe: Recipe, rows: Ids | None, work: Path, progress: Progress) -> Prepared:
    """Codes for the chosen linears' weights. GPTQ and AWQ need rows, rounding to nearest none."""
    if recipe.rounding != "nearest":
        assert rows is not None
        rounder = round_in_turn if recipe.rounding == "gptq" else round_aware
        return rounder(graph, recipe, rows, work, progress)
    chosen = recipe.chosen(graph.linears)
    return Prepared({linear.name: round_to_nearest(weight_of(linear), recipe.grid_of(linear)) for linear in chosen})
