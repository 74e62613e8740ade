"""Two engines in lockstep where the lowered one rounds keys and values inside its kernel, where nothing can be given.

So the direction turns about: the lowered engine runs first, and the canonical one goes on from what it did. At every
layer the canonical attention reads the lowered engine's cache, codes times the canonical scales, and what the lowered
attention made of it is what the canonical graph goes on with. What the canonical graph would have computed itself is
compared: keys and values before they are rounded, with the codes; the result of each attention; and, as in forced.py,
activations before they become codes. A code that falls to the other side of an edge is then the same code for both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.bundle.interface import PARTS, PRESENT, layer_of, state_name
from piston.engines.equivalence.activation_injection import (
    GIVEN,
    OWN,
    Array,
    InjectedEngine,
    Tape,
    check_known,
    copied,
    fetch,
    force,
    quantizers,
)
from piston.graph.pattern import constant_ints, dims_of, emit, static_dims, tidy
from piston.graph.qdq import cache_rounding
from piston.runtime.backends.ort_cpu import OrtEngine

ATTENTION = "attention."  # and the layer: the name of its result on the tape


@dataclass
class CacheTape(Tape):
    """A tape that also holds the INT8 cache after each run, [rows, kv_heads, capacity, head_dim] of each array."""

    scales: list[Array] = field(default_factory=list)  # [1, kv_heads, 1, head_dim] or a scalar, of each array
    caches: list[list[NDArray[np.int8]]] = field(default_factory=list)


@contextmanager
def recordable(lowered: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """A copy of the lowered graph that gives out what each QuantizeLinear reads and each attention's result.

    Also the names of the codes and of the attentions, `attention.<layer>`, and whether there is a MatMulNBits. The copy
    lies beside the graph, reads the same weights, and is gone after the block.
    """
    model = ir.load(lowered)
    graph = model.graph
    names = [str(node.outputs[0].name) for node in quantizers(graph)]
    graph.outputs.extend(copied(graph, node, OWN) for node in quantizers(graph))
    for node in [node for node in graph if node.op_type == "GroupQueryAttention"]:
        name = f"{ATTENTION}{layer_of(str(node.outputs[1].name))}"
        names.append(name)
        _give_out(graph, node.outputs[0], f"{name}{OWN}")
    with _beside(lowered, model, "recordable.onnx") as path:
        yield path, names, any(node.op_type == "MatMulNBits" for node in graph)


@contextmanager
def steerable(canonical: Path, names: list[str]) -> Iterator[tuple[Path, list[Array]]]:
    """A copy of the canonical graph that reads its cache, and what `names` names, from inputs `<name>.given`.

    Its own cache gets keys and values as they are before they are rounded. Also the scales of the cache, keys and
    values of each layer by turns.

    Raises:
        ParityError: some of `names` is not in the canonical graph.
    """
    model = ir.load(canonical)
    graph = model.graph
    graph.outputs[:] = [value for value in graph.outputs if not str(value.name).endswith(GIVEN)]
    scales: dict[str, Array] = {}
    attentions: list[str] = []
    for scatter in [node for node in graph if node.op_type == "TensorScatter"]:
        present = str(scatter.outputs[0].name)
        scales[present] = _steer_cache(graph, scatter)
        if present.endswith(PARTS[0]):
            attentions.append(f"{ATTENTION}{layer_of(present)}")
            _steer_attention(graph, attentions[-1])
    tidy(model)
    check_known(names, {*attentions, *force(graph, names)})
    layers = range(len(attentions))
    with _beside(canonical, model, "steerable.onnx") as path:
        yield path, [scales[state_name(PRESENT, layer, part)] for layer in layers for part in PARTS]


class RecordingCacheEngine(OrtEngine):
    """Puts activations, attentions and the cache of every run on the tape."""

    tape: CacheTape

    def _run(self, binding: Any) -> None:
        self.tape.runs.append(fetch(super()._run, binding, self.tape.names, OWN))
        arrays = binding.get_outputs()[1 : 1 + len(self.tape.scales)]  # bound after the logits
        self.tape.caches.append([array.numpy().copy() for array in arrays])


class InjectedCacheEngine(InjectedEngine):
    """Takes them from the tape."""

    tape: CacheTape

    def _run(self, binding: Any) -> None:
        codes = self.tape.caches.pop(0)
        for index, (array, scale) in enumerate(zip(codes, self.tape.scales, strict=True)):
            name = state_name(PRESENT, index // len(PARTS), PARTS[index % len(PARTS)])
            binding.bind_cpu_input(f"{name}{GIVEN}", array.astype(np.float32) * scale)
        super()._run(binding)


def _steer_cache(graph: ir.Graph, scatter: ir.Node) -> Array:
    """Let readers of the cache read an input, and the cache get what was not rounded; returns its scales."""
    present, rounding = scatter.outputs[0], cache_rounding(scatter.inputs[1])
    assert rounding is not None
    assert rounding.scale.const_value is not None
    given = ir.Value(name=f"{present.name}{GIVEN}", type=present.type, shape=present.shape)
    graph.inputs.append(given)
    for use in list(present.uses()):
        use.node.replace_input_with(use.idx, given)
    scatter.replace_input_with(1, rounding.source)
    return np.asarray(rounding.scale.const_value.numpy(), np.float32)


def _steer_attention(graph: ir.Graph, name: str) -> None:
    """Let readers of an attention's [batch, heads, seq, head_dim] read the input `<name>.given`, with heads merged."""
    past = f"{state_name(PRESENT, int(name.rpartition('.')[2]), PARTS[0])}{GIVEN}"
    (node,) = [node for node in graph if node.op_type == "Attention" and node.inputs[1].name == past]  # type: ignore[union-attr]
    result = node.outputs[0]
    batch, _, seq, _ = dims_of(result)
    heads, head_dim = static_dims(result)[1::2]
    by_head, width = (batch, seq, heads, head_dim), heads * head_dim
    given = ir.Value(name=f"{name}{GIVEN}", type=result.type, shape=ir.Shape([batch, seq, width]))
    graph.inputs.append(given)
    split = emit(node, "Reshape", [given, constant_ints(graph, 0, 0, heads, head_dim)], like=result, dims=by_head)
    swapped = emit(node, "Transpose", split.outputs, {"perm": (0, 2, 1, 3)}, like=result)
    result.replace_all_uses_with(swapped.outputs[0])
    back = ir.node("Transpose", [result], {"perm": (0, 2, 1, 3)})
    merged = ir.node("Reshape", [back.outputs[0], constant_ints(graph, 0, 0, width)])
    merged.outputs[0].type, merged.outputs[0].shape = result.type, given.shape
    graph.insert_after(node, [back, merged])
    _give_out(graph, merged.outputs[0], f"{name}{OWN}")


def _give_out(graph: ir.Graph, value: ir.Value, name: str) -> None:
    producer = value.producer()
    assert producer is not None
    copy = ir.node("Identity", [value], name=name)
    copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, value.type, value.shape
    graph.insert_after(producer, copy)
    graph.outputs.append(copy.outputs[0])


@contextmanager
def _beside(original: Path, model: ir.Model, name: str) -> Iterator[Path]:
    path = original.with_name(name)
    ir.save(model, path)
    try:
        yield path
    finally:
        path.unlink()
