"""A prepared float graph in which any linears can be quantized and back, without loading it again.

Codes are multiplied in float: Q/DQ as it is written. Every weight is an input that has a default, and is given
dequantized where its linear is quantized, or kept with weights in INT8; an activation passes its pair or not by a flag
of the linear that reads it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.calibration.graph.linears import Linear, find_linears
from piston.calibration.schemes.kv_cache import RoundCachePass, Scales
from piston.calibration.schemes.prepared import Prepared
from piston.calibration.schemes.residual import round_remainder
from piston.core.bundle import GRAPH
from piston.core.bundle.interface import CacheSpec
from piston.graph.pattern import initializer
from piston.graph.qdq import quantize_activation
from piston.graph.rounding import Quantized
from piston.runtime.backends.ort_run import Run

NAME = "switched.onnx"


class Switches:
    """What an engine over the graph that `write_switched` wrote is given in each run; at first nothing is quantized.

    Args:
        prepared: what the linears become.
        linears: of the graph.
    """

    def __init__(self, prepared: Prepared, linears: Iterable[Linear]) -> None:
        self._prepared = prepared
        self.fed: dict[str, NDArray[Any]] = {}  # inputs of a run, by name
        self._held: dict[str, tuple[Quantized, NDArray[Any]]] = {}  # by linear: what it was last, and as floats
        known = [linear for linear in linears if linear.name in prepared.weights or linear.name in prepared.kept]
        # By linear: the inputs that are its weight, and that say whether its activation is rounded.
        self._weights = {linear.name: linear.weight.name or "" for linear in known}
        self._flags = {linear.name: _flag(linear) for linear in known if linear.input_name in prepared.scales}

    def quantize(self, names: Iterable[str]) -> None:
        """Quantize these linears, and no others."""
        wanted = set(names)
        fed: dict[str, NDArray[Any]] = {}
        for name, weight in self._weights.items():
            stored = self._prepared.weights[name] if name in wanted else self._prepared.kept.get(name)
            if stored is not None:
                fed[weight] = self._floats(name, stored)
            if name in wanted and name in self._flags:
                fed[self._flags[name]] = np.array(True)
        self.fed = fed

    def _floats(self, name: str, stored: Quantized) -> NDArray[Any]:
        held = self._held.get(name)
        if held is None or held[0] is not stored:
            self._held[name] = stored, stored.dequantized()
        return self._held[name][1]

    def around_run(self, run: Run) -> None:
        """Give a run weights and flags; a hook of OrtEngine."""
        for name, array in self.fed.items():  # by address: weights are not copied
            run.binding.bind_input(name, "cpu", 0, array.dtype.type, list(array.shape), array.ctypes.data)
        run.fetch()


def write_switched(directory: Path, prepared: Prepared, kv_scales: Scales, cache: CacheSpec) -> None:
    """Write the graph beside that of the prepared float model directory, whose weights it reads."""
    model = ir.load(directory / GRAPH)
    if kv_scales:
        RoundCachePass(kv_scales, cache)(model)
    for linear in find_linears(model):
        if linear.name in prepared.weights or linear.name in prepared.kept:
            if linear.weight not in model.graph.inputs:  # several linears may read it
                model.graph.inputs.append(linear.weight)
            if linear.name in prepared.weights and linear.input_name in prepared.scales:
                _add_switch(model, linear, prepared)
    ir.save(model, directory / NAME)


def _add_switch(model: ir.Model, linear: Linear, prepared: Prepared) -> None:
    """The linear reads its input, but for outliers, through its pairs where its flag is set."""
    graph, value, matmul = model.graph, linear.input, linear.matmul
    rounded = _rounded(model, value, prepared)
    if (outliers := prepared.weights[linear.name].outliers) is not None:
        mask = np.zeros(linear.shape[0], np.bool_)
        mask[outliers.channels] = True
        through = [initializer(graph, f"{linear.name}.is_outlier", mask), value, rounded]
        rounded = _where(linear, "outliers", through)
    flag = initializer(graph, _flag(linear), np.array(False))
    graph.inputs.append(flag)
    matmul.replace_input_with(0, _where(linear, "input", [flag, rounded, value]))


def _rounded(model: ir.Model, value: ir.Value, prepared: Prepared) -> ir.Value:
    """What the codes of the value stand for, its remainder's among them; made once."""
    graph, name = model.graph, value.name or ""
    whole = f"{name}.rounded" if name in prepared.ratios else f"{name}.dequantized"
    made = {output.name: output for node in graph for output in node.outputs}
    if whole in made:
        return made[whole]
    rounded = quantize_activation(graph, value, prepared.scales[name])
    if name not in prepared.ratios:
        return rounded
    rest = round_remainder(value, rounded, prepared.scales[name] * prepared.ratios[name])
    node = ir.node("Add", [rounded, rest], name=f"{name}/Add")
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = whole, value.type, value.shape
    producer = rest.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    return node.outputs[0]


def _where(linear: Linear, name: str, inputs: list[ir.Value]) -> ir.Value:
    node = ir.node("Where", inputs, name=f"{linear.name}/{name}/Where")
    output = node.outputs[0]
    output.name, output.type, output.shape = f"{linear.name}.{name}", linear.input.type, linear.input.shape
    assert isinstance(linear.matmul.graph, ir.Graph)
    linear.matmul.graph.insert_before(linear.matmul, node)
    return output


def _flag(linear: Linear) -> str:
    return f"{linear.name}.is_quantized"
