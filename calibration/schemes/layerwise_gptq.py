"""w8 and w4 by GPTQ, layer after layer: each is rounded for the inputs that the quantized layers before it give.

What those layers got wrong is made up for, in part, as far as the layer's own weights can: towards the float model's
output from the quantized model's input (Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric
Calibration", ICML 2025). In closed form, with X of the quantized stream, Y of the float one and H = X^T X damped, the
weights to be rounded are W + SHARE H^-1 X^T (Y - X) W.

Inputs behind a norm that are large are split beforehand, see `splitting`: a kernel that rounds activations in blocks
loses less of the others, and their own weights become finer.
"""

from collections.abc import Container, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.calibration.float_graph import ModelGraph
from piston.calibration.graph.folding import Fold, apply_fold, find_fold
from piston.calibration.graph.linears import Linear, by_input
from piston.calibration.numeric.min_max import extremes
from piston.calibration.observe.checkpoint_file import key_of
from piston.calibration.observe.inputs import RowsLike, inputs_of
from piston.calibration.recipe import Recipe
from piston.calibration.schemes.channel_splitting import Source, apply_split, num_copies, shared_out, split_largest
from piston.calibration.schemes.gptq import Hessian, gptq
from piston.calibration.schemes.gptq_checkpoint import ROUNDED, Rounded, RoundedFiles, RoundedGroup
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.segments import Segment, StreamedModel, check_unshared, cut
from piston.calibration.schemes.w8a8 import weight_of
from piston.core.console import Progress
from piston.graph.rounding import CLIPS, Floats, Quantized

Matrix = NDArray[np.float64]
AT_ONCE = 4096  # tokens
# Tokens for each input that are enough: where there are twice as many, every second of a row is summed. Neighbours say
# much the same. SmolLM2-135M in w4 on 64 rows of 512 takes 184 s so instead of 216, and its KL is 0.0769 nats on prose
# and 0.1127 on technical text where it was 0.0775 and 0.1152.
ENOUGH = 10
# Of the correction. All of it fits the weights to what these rows drifted by: KL of SmolLM2-135M in w4, calibrated on
# 64 rows, is 0.0925 nats on prose and 0.1243 on technical text with all of it, and with 0.3 to 0.6 no more than 0.0844
# and 0.1154.
SHARE = 0.5


class InputSums:
    """X^T X of the quantized stream and X^T (Y - X), Y of the float one, over tokens of length one in X.

    Tokens are kept until there are `AT_ONCE`: the products are then summed in float64 a few times instead of often.

    Args:
        name: of the values, for errors.
        weight: W [K, N], the weights of all linears that read them.
        every: of how many tokens of a row one is summed.
    """

    def __init__(self, name: str, weight: Floats, every: int = 1) -> None:
        size, width = weight.shape
        self.name, self.every = name, every
        self.weight = weight
        self._narrow = 2 * width < size  # fewer multiplications if W is multiplied with each token than with the sum
        self._gram, self._drift = np.zeros((size, size)), np.zeros((size, width if self._narrow else size))
        self._given, self._change = np.empty((2, AT_ONCE, size), np.float32)
        self._kept = self._rows = 0

    def update(self, exact: Floats, given: Floats) -> None:
        """Take the same tokens of both streams, float32 [1, tokens, K].

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        extremes(given, self.name, per_channel=False)
        first = self._rows % self.every
        exact, given = (stream.reshape(-1, len(self.weight))[first :: self.every] for stream in (exact, given))
        self._rows += 1
        for start in range(0, len(given), AT_ONCE):
            self._take(exact[start : start + AT_ONCE], given[start : start + AT_ONCE])

    @property
    def gram(self) -> Matrix:
        """X^T X [K, K] of all that was taken."""
        self._add_up()
        return self._gram

    def missing(self, hessian: Hessian) -> Floats:
        """What W [K, N] would have to be moved by to give the float output from drifted inputs."""
        self._add_up()
        change = hessian.solve(self._drift)
        return change if self._narrow else change @ self.weight

    def _take(self, exact: Floats, given: Floats) -> None:
        if self._kept + len(given) > AT_ONCE:
            self._add_up()
        part = slice(self._kept, self._kept + len(given))
        lengths = np.sqrt(np.einsum("tk,tk->t", given, given))[:, None]
        share = np.float32(1) / np.where(lengths == 0, np.float32(1), lengths)
        np.multiply(given, share, out=self._given[part])
        np.multiply(exact, share, out=self._change[part])
        self._change[part] -= self._given[part]
        self._kept = part.stop

    def _add_up(self) -> None:
        given, change = self._given[: self._kept], self._change[: self._kept]
        self._gram += given.T @ given
        self._drift += given.T @ (change @ self.weight if self._narrow else change)
        self._kept = 0


def every_of(tokens: int, inputs: int) -> int:
    """Of how many tokens one is summed."""
    return 2 if tokens >= 2 * ENOUGH * inputs else 1


def round_in_turn(graph: ModelGraph, recipe: Recipe, rows: RowsLike, work: Path, progress: Progress) -> Prepared:
    """Codes for the chosen linears, in the order of the graph; nothing of the rows stays in memory.

    Stopped at any moment, the same call with the same `work` goes on from the last group that it was through with.
    """
    check_unshared(graph, "GPTQ", "give --rounding nearest or awq")
    segments = cut(graph.model.graph, by_input(recipe.chosen(graph.linears)))
    files = RoundedFiles(work / ROUNDED, _key(graph, recipe, rows))
    sparse = {linear.name for linear in recipe.sparse(graph.linears)}
    relay = StreamedModel(graph, rows, files.directory / "rows")  # within, so that rows of other work go with it
    rounded = list[RoundedGroup]()
    found = files.load([segment.group for segment in segments], recipe)
    for done, segment in enumerate(segments):
        progress.step("rounding weights", done, len(segments))
        if done < len(found):
            new = found[done]
        else:
            new = _round_group(segment, relay, recipe, sparse)
            files.save(done, new)
            relay.leave(segment)
        relay.rounded[segment.reads] = new
        rounded.append(new)
    relay.close()
    for segment, new in zip(segments, rounded, strict=True):  # only now: the relay reads the graph as it was
        factors = num_copies(new.source)
        if (fold := _fold_into_norm(segment.group)) and len(new.source) > len(factors):
            apply_fold(fold, segment.group, factors)
            apply_split(segment.group, new.source)
    return Prepared({name: weight for new in rounded for name, weight in new.weights.items()})


def _round_group(segment: Segment, relay: StreamedModel, recipe: Recipe, sparse: Container[str]) -> RoundedGroup:
    """Bring all rows to the group, and round its weights for what arrives there; zeros of `sparse` ones stay."""
    weights = [weight_of(linear) for linear in segment.group]
    joined = np.concatenate(weights, axis=1)
    sums = InputSums(segment.reads, joined, every_of(relay.rows.num_positions, len(joined)))
    for values in relay.run(segment):
        sums.update(values["float"], values["quantized"])
    hessian = Hessian(sums.gram)
    ends = np.cumsum([weight.shape[1] for weight in weights])[:-1]
    goals = joined + np.float32(SHARE) * sums.missing(hessian)
    source = split_inputs(segment.group, sums.gram, recipe)
    factors = num_copies(source)
    if len(source) > len(factors):
        goals = shared_out(goals * factors[:, None], source)
        hessian = Hessian((sums.gram / np.outer(factors, factors))[np.ix_(source, source)])
    parts = dict(zip(segment.group, np.split(goals, ends, axis=1), strict=True))
    zeros = {
        linear: weight != 0 for linear, weight in zip(segment.group, weights, strict=True) if linear.name in sparse
    }
    stays = {linear: mask[source] for linear, mask in zeros.items()}
    return RoundedGroup(_round_together(parts, hessian, recipe, stays), source)


def split_inputs(group: Sequence[Linear], gram: Matrix, recipe: Recipe) -> Source:
    """Where each input of what the group is to read comes from, int64 [inputs]; copies where a norm can be divided."""
    extra = recipe.copies_beside(len(gram), group) if _fold_into_norm(group) is not None else 0
    return split_largest(np.sqrt(np.diagonal(gram)), extra)


def _fold_into_norm(group: Sequence[Linear]) -> Fold | None:
    fold = find_fold(group)
    return fold if fold is not None and fold.into_norm else None


def _round_together(
    goals: Mapping[Linear, Floats], hessian: Hessian, recipe: Recipe, stays: Mapping[Linear, NDArray[np.bool_]]
) -> Rounded:
    """Linears of one grid as one that is as wide as all: no output has a say in another's codes."""
    rounded: Rounded = {}
    for grid in dict.fromkeys(recipe.grid_of(linear) for linear in goals):
        alike = [linear for linear in goals if recipe.grid_of(linear) == grid]
        masks = [stays.get(linear, np.ones(goals[linear].shape, np.bool_)) for linear in alike]
        mask = np.concatenate(masks, axis=1) if stays else None
        joined = gptq(np.concatenate([goals[linear] for linear in alike], axis=1), hessian, grid, stays=mask)
        start = 0
        for linear in alike:
            end = start + goals[linear].shape[1]
            rounded[linear.name] = Quantized(
                joined.codes[:, start:end].copy(), joined.scales[:, start:end].copy(), grid
            )
            start = end
    return {linear.name: rounded[linear.name] for linear in goals}


def _key(graph: ModelGraph, recipe: Recipe, rows: RowsLike) -> str:
    """Of what shapes codes: what is kept in float once all is rounded, or how caches are stored, does not."""
    shaping = ("scheme", "block", "rounding", "keep", "int8", "split", "sparsity", "dense", "pruning")
    return key_of(
        {
            "versions": {package: version(package) for package in ("piston", "onnxruntime", "numpy")},
            "model": graph.sha256,
            "rows": inputs_of(rows).key,
            "share": SHARE,
            "enough": ENOUGH,
            "clips": CLIPS.tolist(),
            "has_small_tables": recipe.has_small_tables,
            "recipe": {name: getattr(recipe, name) for name in shaping},
        }
    )
