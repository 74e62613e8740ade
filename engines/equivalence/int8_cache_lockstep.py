"""Two engines in lockstep where the lowered one rounds keys and values inside its kernel, where nothing can be given.

So the direction turns about: the lowered engine runs first, and the canonical one goes on from what it did. At every
layer the canonical attention reads the lowered engine's cache, codes times the canonical scales, and what the lowered
attention made of it is what the canonical graph goes on with. What the canonical graph would have computed itself is
compared: keys and values before they are rounded, with the codes; the result of each attention; and
activations before they become codes, as in activation_injection.py. A code that falls to the other side of an edge is
then the same code for both.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx_ir as ir

from piston.core.bundle.interface import PARTS, PRESENT, layer_of, state_name
from piston.engines.equivalence.activation_injection import Array, Tape, check_known, inject_activations, source_of
from piston.graph.pattern import array_of, constant_ints, dims_of, emit, static_dims, tidy
from piston.graph.qdq import cache_rounding, quantizers
from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside
from piston.runtime.backends.ort_run import Run, Values

ATTENTION = "attention."  # and the layer: the name of its result on the tape


@dataclass
class CacheTape(Tape):
    """From the lowered engine to the canonical one: activations, attentions, and the INT8 cache after each run."""

    scales: dict[str, Array] = field(default_factory=dict)  # by state: [1, kv_heads, 1, head_dim] or a scalar

    def record(self, run: Run) -> Values:
        """Make the lowered engine's run; what it gave out, and its cache."""
        return run.fetch(self.names, OWN) | run.states()

    def replay(self, run: Run, given: Values) -> None:
        """Make the canonical engine's run on that cache, codes times scales; compares as Tape does."""
        run.inject({name: given[name].astype(np.float32) * scale for name, scale in self.scales.items()}, GIVEN)
        super().replay(run, given)


@contextmanager
def recordable(lowered: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """A copy of the lowered graph that gives out what each QuantizeLinear reads and each attention's result.

    Also the names of the codes and of the attentions, `attention.<layer>`, and whether there is a MatMulNBits. The copy
    is there until the block ends.
    """
    model = ir.load(lowered)
    values = {name: source_of(node) for name, node in quantizers(model.graph).items()}
    for node in [node for node in model.graph if node.op_type == "GroupQueryAttention"]:
        values[f"{ATTENTION}{layer_of(str(node.outputs[1].name))}"] = node.outputs[0]
    tap = GraphTap(model)
    for name, value in values.items():
        tap.give_out(value, f"{name}{OWN}")
    with saved_beside(model, lowered, "recordable") as path:
        yield path, list(values), any(node.op_type == "MatMulNBits" for node in model.graph)


@contextmanager
def steerable(canonical: Path, names: list[str]) -> Iterator[tuple[Path, dict[str, Array]]]:
    """A copy of the canonical graph that reads its cache, and what `names` names, from inputs `<name>.given`.

    Its own cache gets keys and values as they are before they are rounded. Also the scales of the cache, keys and
    values of each layer by turns, by the names of outputs.

    Raises:
        ParityError: some of `names` is not in the canonical graph.
    """
    model = ir.load(canonical)
    graph, tap = model.graph, GraphTap(model)
    graph.outputs[:] = [value for value in graph.outputs if not str(value.name).endswith(GIVEN)]
    scales: dict[str, Array] = {}
    attentions: list[str] = []
    for scatter in [node for node in graph if node.op_type == "TensorScatter"]:
        present = str(scatter.outputs[0].name)
        scales[present] = _steer_cache(tap, scatter)
        if present.endswith(PARTS[0]):
            attentions.append(f"{ATTENTION}{layer_of(present)}")
            _steer_attention(tap, attentions[-1])
    tidy(model)
    check_known(names, [*attentions, *inject_activations(tap, names)])
    states = [state_name(PRESENT, layer, part) for layer in range(len(attentions)) for part in PARTS]
    with saved_beside(model, canonical, "steerable") as path:
        yield path, {name: scales[name] for name in states}


def _steer_cache(tap: GraphTap, scatter: ir.Node) -> Array:
    """Let readers of the cache read an input, and the cache get what was not rounded; returns its scales."""
    present, rounding = scatter.outputs[0], cache_rounding(scatter.inputs[1])
    assert rounding is not None
    tap.inject(present, str(present.name))
    scatter.replace_input_with(1, rounding.source)
    return np.asarray(array_of(rounding.scale), np.float32)


def _steer_attention(tap: GraphTap, name: str) -> None:
    """Let readers of an attention's [batch, heads, seq, head_dim] read the input `<name>.given`, with heads merged."""
    graph = tap.graph
    past = f"{state_name(PRESENT, int(name.rpartition('.')[2]), PARTS[0])}{GIVEN}"
    (node,) = [node for node in graph if node.op_type == "Attention" and node.inputs[1].name == past]  # type: ignore[union-attr]
    result = node.outputs[0]
    batch, _, seq, _ = dims_of(result)
    heads, head_dim = static_dims(result)[1::2]
    by_head, width = (batch, seq, heads, head_dim), heads * head_dim
    given = tap.add_input(name, result.type, ir.Shape([batch, seq, width]))
    split = emit(node, "Reshape", [given, constant_ints(graph, 0, 0, heads, head_dim)], like=result, dims=by_head)
    swapped = emit(node, "Transpose", split.outputs, {"perm": (0, 2, 1, 3)}, like=result)
    result.replace_all_uses_with(swapped.outputs[0])
    back = ir.node("Transpose", [result], {"perm": (0, 2, 1, 3)})
    merged = ir.node("Reshape", [back.outputs[0], constant_ints(graph, 0, 0, width)])
    merged.outputs[0].type, merged.outputs[0].shape = result.type, given.shape
    graph.insert_after(node, [back, merged])
    tap.give_out(merged.outputs[0], f"{name}{OWN}")
