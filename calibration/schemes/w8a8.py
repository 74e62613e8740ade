"""w8a8: smooth, set outliers apart, choose static scales for each activation, round weights by output channel."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.folding import Fold, apply_fold, find_fold
from piston.calibration.graph.linears import Linear
from piston.calibration.observe.collect import collect
from piston.calibration.observe.consumers import Consumer, DropChannels, Tee
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.observe.observers import MinMax, make_observer
from piston.calibration.observe.sample import Lengths, Sample
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.outliers import Channels, has_outliers, largest_channels, num_outliers, round_others
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.residual import fine_scale, round_steps
from piston.calibration.schemes.smoothquant import Smoothed, relative_error, search
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.graph.pattern import array_of
from piston.graph.rounding import Floats, Grid, Quantized, round_to_nearest

# Of a kept linear's weights, whose range smoothing widened: by channel, six linears of SmolLM2-135M took KL
# from 0.0243 to 0.0358 nats, in blocks to 0.0264, the rounding of activations by the kernel included.
KEPT_BLOCK = 32
TOKENS = 6  # of a chunk, and its first: kept whole, to measure errors on


@dataclass(slots=True)
class Activation:
    """What is known of one value that linears read."""

    group: list[Linear]
    largest: Floats  # of each channel over all rows, float32 [K]
    sample: Floats  # float32 [tokens, K]
    lengths: Floats | None = None  # of the residual stream that the one reader adds to, at these tokens, [tokens]
    outliers: Channels = field(default_factory=lambda: np.zeros(0, np.int64))  # channels that stay in float
    scale: float = 0.0
    alpha: float | None = None
    ratio: int = 0  # of the scale of what this one leaves over; 0 where that is lost


def observe(graph: ModelGraph, rows: RowsLike, work: Path, progress: Progress) -> dict[str, Activation]:
    """Run the float model over the rows once, and keep what every linear's input is like.

    Linears that will stay in float are among them: smoothing must not depend on what is kept.
    """
    groups = graph.groups()
    extremes = {name: MinMax(name, per_channel=True) for name in groups}
    samples = {name: Sample(name, TOKENS) for name in groups}
    sums = {name: total for name, group in groups.items() if (total := residual_sum(group)) is not None}
    sums = {name: total for name, total in sums.items() if total not in groups}
    lengths = {total: Lengths(total, TOKENS) for total in sums.values()}
    consumers: dict[str, Consumer] = {name: Tee(extremes[name], samples[name]) for name in groups}
    graph.collect(rows, consumers | lengths, work_dir=work / "observe", progress=progress, name="observing")
    return {
        name: Activation(
            group,
            extremes[name].range().amax,
            samples[name].tokens,
            lengths[sums[name]].tokens[:, 0] if name in sums else None,
        )
        for name, group in groups.items()
    }


def residual_sum(group: list[Linear]) -> str | None:
    """The name of the residual stream behind the one linear of `group` that adds to it; None if none does."""
    if len(group) != 1:
        return None
    value = group[0].matmul.outputs[0]
    for _ in range(2):  # a bias first, perhaps
        users = [user for user, _ in value.uses()]
        if len(users) != 1 or users[0].op_type != "Add":
            return None
        total = users[0].outputs[0]
        if not any(item is not None and item.is_initializer() for item in users[0].inputs):
            return total.name
        value = total
    return None


def smooth(activations: dict[str, Activation], recipe: Recipe, progress: Progress) -> None:
    """Fold the best factors of every value that something can absorb; samples and extremes follow.

    Outliers are the channels that are largest when all are smoothed. Then the others are smoothed without them. Where
    single values stand out it is also decided whether what a fine scale leaves over is rounded once more.

    Raises:
        MisuseError: the recipe asks for outliers, and no linear can have them, or not so many.
    """
    if recipe.outliers and not any(has_outliers(activation.group) for activation in activations.values()):
        raise MisuseError(f"--outliers {recipe.outliers}: no linear of this model reads behind an activation function.")
    largest = _over_shared(activations)
    for done, (name, activation) in enumerate(activations.items()):
        progress.step("smoothing", done, len(activations))
        inputs, is_behind = len(activation.largest), has_outliers(activation.group)
        count = num_outliers(recipe.outliers, inputs) if is_behind else 0
        fold = find_fold(activation.group) if recipe.smooth else None
        if fold is None and not (recipe.remainder and is_behind):
            activation.outliers = largest_channels(largest[name], count)
            continue
        terms = _Terms(fold, remainder=recipe.remainder and is_behind)
        found, chosen = _searched(activation, np.ones(inputs, np.bool_), terms), np.ones(inputs, np.bool_)
        factors = found.factors
        if count:
            activation.outliers = largest_channels(largest[name] / factors, count)
            chosen[activation.outliers] = False
            found = _searched(activation, chosen, terms)
            factors = np.ones(inputs, np.float32)
            factors[chosen] = found.factors
        activation.ratio = found.ratio
        if fold is not None:
            apply_fold(fold, activation.group, factors)
            activation.alpha = found.alpha
            activation.largest = activation.largest / factors
            activation.sample = activation.sample / factors


def _over_shared(activations: Mapping[str, Activation]) -> dict[str, Floats]:
    """By name: the largest of each channel, over all values that linears of one weight read; its outliers are theirs.

    A weight that layers share is divided by nothing, so its channels are those of all its inputs.
    """
    together: dict[ir.Value, Floats] = {}
    for activation in activations.values():
        for linear in activation.group:
            known = together.get(linear.weight)
            together[linear.weight] = activation.largest if known is None else np.maximum(known, activation.largest)
    return {
        name: np.max([together[linear.weight] for linear in activation.group], axis=0)
        for name, activation in activations.items()
    }


@dataclass(frozen=True, slots=True)
class _Terms:
    """What may be done to an activation."""

    fold: Fold | None
    remainder: bool


def _searched(activation: Activation, chosen: NDArray[np.bool_], terms: _Terms) -> Smoothed:
    weights = [weight_of(linear)[chosen] for linear in activation.group]
    shared = None if terms.fold is None else terms.fold.shared
    return search(
        activation.sample[:, chosen],
        activation.largest[chosen],
        weights,
        None if shared is None else shared[chosen],
        activation.lengths,
        can_fold=terms.fold is not None,
        remainder=terms.remainder,
    )


def choose_scales(
    graph: ModelGraph,
    activations: dict[str, Activation],
    recipe: Recipe,
    rows: RowsLike,
    work: Path,
    progress: Progress,
) -> None:
    """One scale a value: from the extremes, or from histograms of the smoothed model's values."""
    if recipe.method == "minmax":
        amax = {name: float(np.delete(one.largest, one.outliers).max()) for name, one in activations.items()}
    else:
        graph.save_float(work / "smoothed")
        observers = {name: make_observer(recipe.method, name) for name in activations}
        consumers = {name: DropChannels(observers[name], one.outliers) for name, one in activations.items()}
        collect(work / "smoothed", rows, consumers, work_dir=work / "ranges", progress=progress, name="ranging")
        amax = {name: float(observer.range().amax) for name, observer in observers.items()}
    for name, activation in activations.items():
        activation.scale = fine_scale(amax[name], activation.ratio)


def sensitivity(activations: dict[str, Activation], weights: Mapping[str, Quantized]) -> dict[str, float]:
    """How far INT8 moves what each linear's output is part of, see `relative_error`; worst first."""
    errors = {}
    for activation in activations.values():
        rounded = quantize_sample(activation)
        for linear in activation.group:
            weight = weight_of(linear)
            found = rounded @ weights[linear.name].dequantized()
            errors[linear.name] = relative_error(found, activation.sample @ weight, activation.lengths)
    return dict(sorted(errors.items(), key=lambda item: -item[1]))


def round_all(graph: ModelGraph, recipe: Recipe, rows: RowsLike, work: Path, progress: Progress) -> Prepared:
    """Smooth the graph; codes and scales for every linear that the recipe does not keep."""
    activations = observe(graph, rows, work, progress)
    smooth(activations, recipe, progress)
    choose_scales(graph, activations, recipe, rows, work, progress)
    linears = [linear for activation in activations.values() for linear in activation.group]
    weights = {
        linear.name: round_others(weight_of(linear), recipe.grid, activation.outliers)
        for activation in activations.values()
        for linear in activation.group
    }
    return Prepared(
        weights={linear.name: weights[linear.name] for linear in recipe.chosen(graph.linears, graph.convolutions)},
        kept={linear.name: round_kept(weight_of(linear)) for linear in linears if recipe.stores_kept == "int8"},
        scales={name: activation.scale for name, activation in activations.items()},
        ratios={name: activation.ratio for name, activation in activations.items() if activation.ratio},
        errors=sensitivity(activations, weights),
    )


def round_kept(weight: Floats) -> Quantized:
    """The weight alone in INT8: in blocks, or by channel where blocks would leave a rest."""
    return round_to_nearest(weight, Grid(8, 0 if len(weight) % KEPT_BLOCK else KEPT_BLOCK))


def quantize_sample(activation: Activation) -> Floats:
    """The sample as INT8 with the chosen scales gives it, outliers as they are."""
    rounded = round_steps(activation.sample / np.float32(activation.scale), activation.ratio)
    rounded *= np.float32(activation.scale)
    rounded[:, activation.outliers] = activation.sample[:, activation.outliers]
    return rounded


def weight_of(linear: Linear) -> Floats:
    """Its weight, float32 [K, N]."""
    return np.asarray(array_of(linear.weight), np.float32)
