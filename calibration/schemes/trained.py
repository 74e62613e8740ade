"""Scales that were trained together with the weights: nothing is observed, nothing searched."""

import numpy as np

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import Linear
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.w8a8 import KEPT_BLOCK, weight_of
from piston.core.errors import MisuseError
from piston.graph.rounding import Grid, Quantized, encode
from piston.graph.trained_scales import TrainedScales


def round_trained(graph: ModelGraph, recipe: Recipe, trained: TrainedScales) -> Prepared:
    """Codes by the trained scales; w8a8 reads activations by theirs.

    Raises:
        MisuseError: the scales are of a model with other linears, or of other sizes.
    """
    chosen = recipe.chosen(graph.linears)
    kept_in_float = set(recipe.kept_in_float)
    weights = {
        linear.name: _rounded(linear, recipe, trained, is_kept=linear.name in kept_in_float) for linear in chosen
    }
    read = [linear for linear in chosen if recipe.scheme == "w8a8" and linear.name not in kept_in_float]
    if missing := [linear.name for linear in read if linear.name not in trained.inputs]:
        raise MisuseError(f"The trained scales have none for the input of {missing[0]}; use the files of this student.")
    inputs = {linear.input_name: trained.inputs[linear.name] for linear in read}
    return Prepared(
        weights=weights,
        kept={name: weights[name] for name in kept_in_float if name in weights},
        scales={name: scale for name, (scale, _) in inputs.items()},
        ratios={name: ratio for name, (_, ratio) in inputs.items() if ratio},
    )


def _rounded(linear: Linear, recipe: Recipe, trained: TrainedScales, *, is_kept: bool) -> Quantized:
    inputs, outputs = linear.shape
    scales, grid = trained.weights.get(linear.name), recipe.grid_of(linear)
    if is_kept and scales is not None and len(scales) > 1:
        grid = Grid(8, KEPT_BLOCK)
    if scales is None or scales.shape != (grid.num_blocks(inputs), outputs):
        found = "none" if scales is None else f"scales {list(scales.shape)}"
        raise MisuseError(
            f"The trained scales have {found} for {linear.name} [{inputs}, {outputs}]; give the export of "
            "the student that they were trained with."
        )
    weight = weight_of(linear)
    codes = np.empty(weight.shape, np.int8)
    for part, scale in zip(grid.block_slices(inputs), scales, strict=True):
        codes[part] = encode(weight[part], scale, grid)
    return Quantized(codes, scales, grid)
