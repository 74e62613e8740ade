"""2:4 sparsity: of every four inputs of an output two weights become zero, and what they did is made up for.

Frantar and Alistarh, "SparseGPT: Massive Language Models Can Be Accurately Pruned in One-Shot", ICML 2023: inputs are
taken in their order; of each four the two are removed whose removal, by the inverse hessian, costs the output least,
and the inputs behind them make up for it. Layer after layer, for the inputs that the sparse layers before it give, with
the sums of `piston.calibration.schemes.layerwise_gptq`. "magnitude" removes the two smallest and makes up for nothing.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.linears import Linear, by_input
from piston.calibration.observe.inputs import RowsLike
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.gptq import LAZY, damped, inverse_factor
from piston.calibration.schemes.layerwise_gptq import InputSums, every_of
from piston.calibration.schemes.segments import StreamedModel, check_unshared, cut
from piston.calibration.schemes.w8a8 import weight_of
from piston.core.console import Progress
from piston.core.errors import CalibrationError
from piston.graph.rounding import Floats
from piston.graph.sparsity import GROUP, LEFT

Mask = NDArray[np.bool_]


def sparsify(graph: ModelGraph, recipe: Recipe, rows: RowsLike | None, work: Path, progress: Progress) -> list[str]:
    """Make the weights that the recipe names 2:4 sparse in the float graph; returns their names in its order.

    Raises:
        MisuseError: SparseGPT of weights that layers share.
        CalibrationError: an activation is not finite, or an output would be left without weights.
    """
    chosen = recipe.sparse(graph.linears)
    made: Mapping[str, Floats]
    if recipe.pruning == "magnitude":
        made = {linear.name: masked(linear, weight_of(linear)) for linear in chosen}
    else:
        assert rows is not None
        check_unshared(graph, "SparseGPT", "give --pruning magnitude")
        made = _in_turn(graph, chosen, rows, work, progress)
    for linear in chosen:
        linear.weight.const_value = ir.tensor(made[linear.name], name=linear.weight.name)
    return [linear.name for linear in chosen]


def masked(linear: Linear, weight: Floats) -> Floats:
    """The weight [K, N] with the two smallest of every four inputs zero."""
    groups = np.abs(weight).reshape(-1, GROUP, weight.shape[1])
    result = np.where(_largest(groups).reshape(weight.shape), weight, np.float32(0))
    check_rows(linear.name, weight, result)
    return result


def sparse_gpt(weight: Floats, factor: Floats) -> Floats:
    """Weight [K, N] made 2:4 sparse along K, given the upper Cholesky factor [K, K] of the inverse hessian."""
    result, errors = np.empty_like(weight), np.empty_like(weight)
    diagonal = np.diagonal(factor)[:, None]
    for start in range(0, len(weight), LAZY):
        part = slice(start, min(start + LAZY, len(weight)))
        inner, local = factor[part, part], weight[part] - factor[:start, part].T @ errors[:start]
        for first in range(0, len(local), GROUP):
            four = slice(first, first + GROUP)
            wanted = local[four] - inner[:first, four].T @ errors[start : start + first]
            stays = _largest((np.abs(wanted) / diagonal[start + first : start + first + GROUP])[None])[0]
            for place in range(GROUP):
                row = start + first + place
                value = wanted[place] - inner[first : first + place, first + place] @ errors[start + first : row]
                result[row] = np.where(stays[place], value, np.float32(0))
                errors[row] = (value - result[row]) / factor[row, row]
    return result


def check_rows(name: str, weight: Floats, sparse: Floats) -> None:
    """Raise CalibrationError for an output [K, N] that had weights and has none."""
    empty = np.flatnonzero(weight.any(axis=0) & ~sparse.any(axis=0))
    if len(empty):
        raise CalibrationError(
            f"2:4 sparsity leaves output {empty[0]} of {name} without weights ({len(empty)} outputs in all); leave it "
            f"dense with --dense {name}."
        )


def _in_turn(
    graph: ModelGraph, chosen: list[Linear], rows: RowsLike, work: Path, progress: Progress
) -> Mapping[str, Floats]:
    segments = cut(graph.model.graph, by_input(chosen))
    relay = StreamedModel(graph, rows, work / "sparse-rows")
    for done, segment in enumerate(segments):
        progress.step("making weights sparse", done, len(segments))
        weights = {linear.name: weight_of(linear) for linear in segment.group}
        joined = np.concatenate(list(weights.values()), axis=1)
        sums = InputSums(segment.reads, joined, every_of(relay.rows.num_positions, len(joined)))
        for values in relay.run(segment):
            sums.update(values["float"], values["quantized"])
        factor = inverse_factor(damped(sums.gram))
        sparse = sparse_gpt(joined, factor)
        start = 0
        for name, weight in weights.items():
            relay.replaced[name] = np.ascontiguousarray(sparse[:, start : start + weight.shape[1]])
            check_rows(name, weight, relay.replaced[name])
            start += weight.shape[1]
        relay.leave(segment)
    relay.close()
    return relay.replaced


def _largest(scores: Floats) -> Mask:
    """Of scores [groups, GROUP, N] the LEFT largest of each group; of equal ones the first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None, :, None], axis=1)
    return np.asarray(ranks < LEFT)
