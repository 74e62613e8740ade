"""kv8: keys and values pass through INT8 codes before they are written into the cache.

The form is piston.graph.qdq's. The cache of the canonical graph stays in float; a lowering stores the codes.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from piston.calibration.observe.cache_range import CacheRange, Rotation
from piston.calibration.observe.collect import collect
from piston.calibration.recipe import Granularity
from piston.core.bundle.interface import CacheSpec
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.data.packing import Ids
from piston.graph.qdq import round_cache
from piston.graph.rounding import Floats

Scales = Mapping[str, Sequence[float]]  # by output of the graph, such as "present.0.key": one, or heads x head_dim
LARGEST_CODE = 127


def observe_cache(
    directory: Path, model: ir.Model, rows: Sequence[Ids], granularity: Granularity, work: Path, progress: Progress
) -> dict[str, tuple[float, ...]]:
    """Run the float model directory over every array of rows [rows, tokens]; `model` is its graph.

    Raises:
        CalibrationError: a key or a value is not finite.
    """
    ranges = {
        scatter.outputs[0].name or "": CacheRange(new.name or "", Rotation.of(new))
        for scatter, new in written(model.graph)
    }
    consumers = {found.name: found for found in ranges.values()}
    for part, ids in enumerate(rows):
        # A range only grows, so the second collection goes on with what the first one found.
        collect(
            directory, ids, consumers, work_dir=work / f"cache{part}", progress=progress, name="observing the cache"
        )
    return {name: _scales(found, granularity) for name, found in ranges.items()}


def _scales(found: CacheRange, granularity: Granularity) -> tuple[float, ...]:
    assert found.largest is not None
    largest = found.largest if granularity == "channel" else found.largest.max(keepdims=True)
    safe = np.where(largest == 0, np.float32(1), largest)  # a channel that is never written needs some scale
    # The shortest decimals that are these float32 again: a manifest holds thousands of them.
    return tuple(float(str(scale)) for scale in (safe / LARGEST_CODE).astype(np.float32).ravel())


def written(graph: ir.Graph) -> list[tuple[ir.Node, ir.Value]]:
    """Every write into the cache, and the new keys or values in it, in the order of the graph."""
    scatters = [node for node in graph if node.op_type == "TensorScatter"]
    return [(node, node.inputs[1]) for node in scatters if node.inputs[1] is not None]


def cache_steps(model: ir.Model, scales: Scales, cache: CacheSpec) -> dict[str, Floats]:
    """The scales by the name of the new keys or values, in a shape that goes with [batch, heads, seq, head_dim]."""
    shaped = RoundCachePass(scales, cache).scales
    return {new.name or "": shaped[node.outputs[0].name or ""] for node, new in written(model.graph) if scales}


class RoundCachePass(ir.passes.InPlacePass):
    """Rounds what each TensorScatter writes by the scale, or the scales, of its output's name."""

    def __init__(self, scales: Scales, cache: CacheSpec) -> None:
        super().__init__()
        self.shapes = {state.output: state.sizes(1, 1) for state in cache.states}
        self.scales = {name: self._array(name, values) for name, values in scales.items()}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the pairs; raises MisuseError where the scales are of other caches than the graph's."""
        scatters = written(model.graph)
        names = {node.outputs[0].name for node, _ in scatters}
        if apart := sorted(map(str, names ^ set(self.scales))):
            raise MisuseError(f"The recipe's cache scales are of another model: {apart[0]} is in one of them only.")
        for node, _ in scatters:
            round_cache(model.graph, node, self.scales[node.outputs[0].name or ""])
        return ir.passes.PassResult(model, modified=bool(scatters))

    def _array(self, name: str, values: Sequence[float]) -> Floats:
        """A scalar, or [1, kv_heads, 1, head_dim]."""
        array = np.array(values, np.float32)
        if not (np.isfinite(array).all() and (array > 0).all()):
            raise MisuseError(f"The recipe's scales of {name} are not all positive; calibrate again.")
        if name not in self.shapes:
            raise MisuseError(f"The recipe's cache scales are of another model: it has no {name}.")
        shape = self.shapes[name]
        if array.size not in (1, math.prod(shape)):
            raise MisuseError(
                f"The recipe has {array.size} scales for {name}; the cache has {shape[1]} heads of {shape[3]}: it "
                "takes 1, or one for each channel."
            )
        return array.reshape(() if array.size == 1 else shape)
