"""Two engines in lockstep at every activation that is rounded to codes: the second gets what the first computed.

Rounding is not continuous. A difference in the last bit turns one code in a hundred thousand into its neighbour, which
is a whole step apart, turns more codes in the next layer, and after a few layers two right graphs differ by as much as
quantization itself. So the lowered graph's codes are made of the canonical graph's activations, and what it would
have made them of is compared instead: every piece of the graph is then held to the bound of float arithmetic.
"""

from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.errors import ParityError
from piston.graph.qdq import Remainder
from piston.runtime.backends.ort_cpu import OrtEngine

Array = NDArray[np.float32]
GIVEN, OWN = ".given", ".own"


def add_activation_outputs(model: ir.Model) -> None:
    """Give each QuantizeLinear's input of a canonical graph out, as `<name of the codes>.given`."""
    for quantize in quantizers(model.graph):
        model.graph.outputs.append(copied(model.graph, quantize, GIVEN))


@contextmanager
def injectable(lowered: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """A copy of the lowered graph where each QuantizeLinear reads an input, or itself if it has none.

    Also the names of the codes, and whether there is a MatMulNBits. The copy lies beside the graph, reads the same
    weights, and is gone after the block.
    """
    model = ir.load(lowered)
    has_nbits = any(node.op_type == "MatMulNBits" for node in model.graph)
    names = force(model.graph)
    if not names:
        yield lowered, [], has_nbits
        return
    path = lowered.with_name("forced.onnx")
    ir.save(model, path)
    try:
        yield path, names, has_nbits
    finally:
        path.unlink()


def force(graph: ir.Graph, wanted: list[str] | None = None) -> list[str]:
    """Let each QuantizeLinear, or those of the `wanted` codes, read an input and give out what it read, in place.

    Returns the names of the codes.
    """
    found = [node for node in quantizers(graph) if wanted is None or node.outputs[0].name in wanted]
    for quantize in found:
        source = quantize.inputs[0]
        assert source is not None
        graph.outputs.append(copied(graph, quantize, OWN))
        given = ir.Value(name=f"{quantize.outputs[0].name}{GIVEN}", type=source.type, shape=source.shape)
        graph.inputs.append(given)
        quantize.replace_input_with(0, given)
    return [str(quantize.outputs[0].name) for quantize in found]


def check_known(names: Collection[str], canonical: set[str]) -> None:
    """Raise ParityError where the lowered graph rounds something, of these names, that the canonical one does not."""
    if lost := sorted(set(names) - canonical):
        raise ParityError(f"The lowered graph rounds {lost[0]}, which the canonical one does not. Nothing was written.")


@dataclass
class Tape:
    """What the canonical engine computed in each run, until the lowered engine has made the same run."""

    names: list[str]
    remainders: Mapping[str, Remainder] = field(default_factory=dict)  # by the names of their codes
    runs: deque[dict[str, Array]] = field(default_factory=deque)
    apart: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> largest difference, largest value

    def compare(self, given: dict[str, Array], own: dict[str, Array]) -> None:
        """Remember how far each of the lowered engine's activations was at most from the canonical one's."""
        for name in self.names:
            found = np.abs(given[name] - own[name]).max(initial=0), largest_of(name, given, self.remainders)
            difference, largest = np.maximum(found, self.apart.get(name, (0.0, 0.0)))  # NaN stays
            self.apart[name] = float(difference), float(largest)


def largest_of(name: str, given: Mapping[str, Array], remainders: Mapping[str, Remainder]) -> float:
    """The largest magnitude of what becomes the named codes, or, where that is a remainder, of what left it over.

    A remainder is the difference of two values of that size, and no more exact than they are.
    """
    names = {name, remainders[name].codes if name in remainders else name}
    return float(max(np.abs(given[each]).max(initial=0) for each in names))


class RecordingEngine(OrtEngine):
    """Puts the activations of every run on the tape."""

    tape: Tape

    def exposed(self) -> set[str]:
        """The codes whose activations the graph gives out."""
        names = [str(item.name) for item in self._session.get_outputs()]
        return {name.removesuffix(GIVEN) for name in names if name.endswith(GIVEN)}

    def _run(self, binding: Any) -> None:
        self.tape.runs.append(fetch(super()._run, binding, self.tape.names, GIVEN))


class InjectedEngine(OrtEngine):
    """Takes the activations of every run from the tape."""

    tape: Tape

    def _run(self, binding: Any) -> None:
        given = self.tape.runs.popleft()
        for name, array in given.items():
            binding.bind_cpu_input(f"{name}{GIVEN}", array)
        self.tape.compare(given, fetch(super()._run, binding, self.tape.names, OWN))


def fetch(run: Callable[[Any], None], binding: Any, names: list[str], suffix: str) -> dict[str, Array]:
    """Run, and copy out the named activations, which are bound last."""
    for name in names:
        binding.bind_output(f"{name}{suffix}", "cpu")
    run(binding)
    arrays = binding.get_outputs()[-len(names) :] if names else []
    return {name: array.numpy().copy() for name, array in zip(names, arrays, strict=True)}


def quantizers(graph: ir.Graph) -> list[ir.Node]:
    """Every QuantizeLinear, in the order of the graph."""
    return [node for node in graph if node.op_type == "QuantizeLinear" and node.domain == ""]


def copied(graph: ir.Graph, quantize: ir.Node, suffix: str) -> ir.Value:
    """A copy of what is quantized, under a name of its own: two quantizers may read one value."""
    source = quantize.inputs[0]
    assert source is not None
    copy = ir.node("Identity", [source], name=f"{quantize.name}{suffix}")
    copy.outputs[0].name = f"{quantize.outputs[0].name}{suffix}"
    copy.outputs[0].type, copy.outputs[0].shape = source.type, source.shape
    graph.insert_before(quantize, copy)
    return copy.outputs[0]
