"""w8 and w4 by GPTQ, layer after layer: each is rounded for the inputs that the quantized layers before it give.

What those layers got wrong is made up for as far as the layer's own weights can: the goal is the float model's output
from the quantized model's input (Li et al., "GPTAQ: Efficient Finetuning-Free Quantization for Asymmetric Calibration",
ICML 2025). In closed form, with X of the quantized stream, Y of the float one and H = X^T X damped, the weights to be
rounded are W + H^-1 X^T (Y - X) W.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from piston.calibration.data import hash_rows
from piston.calibration.extremes import extremes
from piston.calibration.gptq import damped, gptq
from piston.calibration.graph import ModelGraph
from piston.calibration.integer import weight_of
from piston.calibration.linears import by_input
from piston.calibration.packing import Ids
from piston.calibration.prepared import Prepared
from piston.calibration.progress_file import key_of
from piston.calibration.recipe import Recipe
from piston.calibration.rounded_files import Rounded, RoundedFiles
from piston.calibration.rounding import Floats
from piston.calibration.segments import Relay, Segment, cut
from piston.runtime.console import Progress

Matrix = NDArray[np.float64]


class InputSums:
    """X^T X of the quantized stream and X^T (Y - X), Y of the float one, over tokens of length one in X."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.gram: Matrix | None = None
        self.drift: Matrix | None = None

    def update(self, exact: Floats, given: Floats) -> None:
        """Take the same tokens of both streams, float32 [1, tokens, K].

        Raises:
            CalibrationError: a value is NaN or infinite.
        """
        extremes(given, self.name, per_channel=False)
        tokens = given.reshape(-1, given.shape[-1])
        lengths: Floats = np.linalg.norm(tokens, axis=1, keepdims=True)
        share = np.float32(1) / np.where(lengths == 0, np.float32(1), lengths)
        tokens = np.multiply(tokens, share, dtype=np.float32)
        drift = np.multiply(exact.reshape(tokens.shape), share, dtype=np.float32) - tokens
        if self.gram is None or self.drift is None:
            size = tokens.shape[1]
            self.gram, self.drift = np.zeros((size, size)), np.zeros((size, size))
        self.gram += tokens.T @ tokens
        self.drift += tokens.T @ drift


def corrected(weight: Floats, hessian: Matrix, drift: Matrix) -> Floats:
    """The weights [K, N] that come nearest to the float output from drifted inputs."""
    return (weight + np.linalg.solve(hessian, drift @ weight)).astype(np.float32)


def round_in_turn(graph: ModelGraph, recipe: Recipe, rows: Ids, work: Path, progress: Progress) -> Prepared:
    """Codes for the chosen linears, in the order of the graph; nothing of the rows stays in memory.

    Stopped at any moment, the same call with the same `work` goes on from the last group that it was through with.
    """
    segments = cut(graph.model.graph, by_input(recipe.chosen(graph.linears)))
    files = RoundedFiles(work / "relay", _key(graph, recipe, rows))
    relay = Relay(graph, rows, work / "relay")
    rounded: Rounded = {}
    found = files.load([segment.group for segment in segments], recipe)
    for done, segment in enumerate(segments):
        progress.step("rounding weights", done, len(segments))
        if done < len(found):
            new = found[done]
        else:
            new = _round_group(segment, relay, recipe)
            files.save(done, new)
            relay.leave(segment)
        relay.quantized |= {linear.weight.name or "": new[linear.name].dequantized() for linear in segment.group}
        rounded |= new
    relay.close()
    return Prepared(rounded)


def _round_group(segment: Segment, relay: Relay, recipe: Recipe) -> Rounded:
    """Bring all rows to the group, and round its weights for what arrives there."""
    sums = InputSums(segment.reads)
    for values in relay.run(segment):
        sums.update(values["float"], values["quantized"])
    assert sums.gram is not None
    assert sums.drift is not None
    hessian = damped(sums.gram)
    rounded: Rounded = {}
    for linear in segment.group:
        goal = corrected(weight_of(linear), hessian, sums.drift)
        rounded[linear.name] = gptq(goal, sums.gram, recipe.grid_of(linear))
    return rounded


def _key(graph: ModelGraph, recipe: Recipe, rows: Ids) -> str:
    """Of what shapes codes: what is spared once all is rounded, or how tables and caches are stored, does not."""
    shaping = ("scheme", "block", "rounding", "keep", "int8")
    return key_of(
        {
            "versions": {package: version(package) for package in ("piston", "onnxruntime", "numpy")},
            "model": graph.sha256,
            "rows": hash_rows(rows),
            "recipe": {name: getattr(recipe, name) for name in shaping},
        }
    )
