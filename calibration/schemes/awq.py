"""AWQ: inputs whose activations are large are scaled up before rounding, and what produces them is divided.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration", MLSys 2024. Channel j of a
weight's inputs is multiplied by s_j = act_j^alpha, act_j the mean magnitude of its activations, so that it is rounded
more finely by that; alpha is searched by the error of the layer's output, and the division folded away as SmoothQuant's
is. Scales are searched last, each input's error weighted by its activations' mean square.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.folding import apply_fold, find_fold
from piston.calibration.graph.linears import by_weight
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.smoothquant import relative_error
from piston.calibration.schemes.w8a8 import Activation, observe, weight_of
from piston.core.console import Progress
from piston.graph.rounding import Floats, Grid, Quantized, encode, round_to_nearest, searched_scale

ALPHAS = tuple(step / 10 for step in range(1, 11))


@dataclass(frozen=True, slots=True)
class Scaling:
    """The chosen alpha, 0 for none, its factors [K], and the error of the outputs without and with them."""

    alpha: float
    factors: Floats
    error_before: float
    error_after: float


def round_aware(graph: ModelGraph, recipe: Recipe, rows: RowsLike, work: Path, progress: Progress) -> Prepared:
    """Fold the best factors wherever something can absorb them, then round the chosen linears' weights."""
    activations = observe(graph, rows, work, progress)
    chosen = {linear.name for linear in recipe.chosen(graph.linears)}
    for done, activation in enumerate(activations.values()):
        progress.step("scaling inputs", done, len(activations))
        group = [linear for linear in activation.group if linear.name in chosen]
        fold = find_fold(activation.group)
        if fold is not None and group:
            grids = [recipe.grid_of(linear) for linear in group]
            found = search(activation, [weight_of(linear) for linear in group], grids, fold.shared)
            apply_fold(fold, activation.group, found.factors)
            activation.sample = activation.sample / found.factors
    importance = {
        linear.name: np.square(unit_tokens(activation.sample)).mean(axis=0)
        for activation in activations.values()
        for linear in activation.group
    }
    runs = by_weight(linear for linear in graph.linears if linear.name in chosen and linear.name in importance)
    rounded: dict[str, Quantized] = {}
    for done, linears in enumerate(runs.values()):  # only now: folds divide weights of layers before
        progress.step("rounding weights", done, len(runs))
        read = np.mean([importance[linear.name] for linear in linears], axis=0)
        weight = round_weighted(weight_of(linears[0]), recipe.grid_of(linears[0]), read)
        rounded |= dict.fromkeys((linear.name for linear in linears), weight)
    return Prepared({linear.name: rounded[linear.name] for linear in graph.linears if linear.name in rounded})


def search(
    activation: Activation, weights: Sequence[Floats], grids: Sequence[Grid], shared: NDArray[np.int64] | None = None
) -> Scaling:
    """The alpha that leaves the least error in the readers' outputs; none is among those tried.

    Args:
        activation: a sample of what all of them read.
        weights: the readers, each float32 [K, N].
        grids: of each.
        shared: groups of channels that need one factor, int [K].
    """
    sample, lengths = activation.sample, activation.lengths
    exact = sample @ np.concatenate(weights, axis=1)
    magnitude = np.abs(unit_tokens(sample)).mean(axis=0)

    def error(factors: Floats) -> float:
        column = factors[:, None]
        pairs = zip(weights, grids, strict=True)
        rounded = [round_to_nearest(weight * column, grid).dequantized() / column for weight, grid in pairs]
        return relative_error(sample @ np.concatenate(rounded, axis=1), exact, lengths)

    ones = np.ones(len(magnitude), np.float32)
    before = error(ones)
    best = Scaling(0.0, ones, before, before)
    for alpha in ALPHAS:
        factors = scaling_factors(magnitude, alpha, shared)
        if (after := error(factors)) < best.error_after:
            best = Scaling(alpha, factors, before, after)
    return best


def scaling_factors(magnitude: Floats, alpha: float, shared: NDArray[np.int64] | None = None) -> Floats:
    """Factors [K] about 1; channels of a group get that of their mean magnitude, channels never excited 1."""
    if shared is not None:
        means = np.bincount(shared, magnitude) / np.maximum(np.bincount(shared), 1)
        magnitude = means[shared].astype(np.float32)
    alive = magnitude > 0
    factors = np.where(alive, magnitude, 1) ** alpha
    center = np.exp(np.log(factors[alive]).mean()) if alive.any() else 1.0
    return np.where(alive, np.clip(factors / center, 1e-3, 1e3), 1).astype(np.float32)


def round_weighted(weight: Floats, grid: Grid, importance: Floats) -> Quantized:
    """Nearest codes by scales whose clipping is searched, the error of each input weighted."""
    parts = grid.block_slices(len(weight))
    scales = np.stack([searched_scale(weight[part], grid, importance[part]) for part in parts])
    codes = np.concatenate([encode(weight[part], scale, grid) for part, scale in zip(parts, scales, strict=True)])
    return Quantized(codes, scales, grid)


def unit_tokens(sample: Floats) -> Floats:
    """Each token [tokens, K] brought to length one: the first would outweigh all others."""
    lengths: Floats = np.linalg.norm(sample, axis=1, keepdims=True)
    return np.divide(sample, np.where(lengths == 0, 1, lengths), dtype=np.float32)
