"""Two engines in lockstep at every activation that is rounded to codes: the second gets what the first computed.

Rounding is not continuous. A difference in the last bit turns one code in a hundred thousand into its neighbour, which
is a whole step apart, turns more codes in the next layer, and after a few layers two right graphs differ by as much as
quantization itself. So the lowered graph's codes are made of the canonical graph's activations, and what it would
have made them of is compared instead: every piece of the graph is then held to the bound of float arithmetic.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from piston.core.errors import ParityError
from piston.graph.qdq import Remainder, quantizers
from piston.graph.tap import GIVEN, OWN, GraphTap, saved_beside
from piston.runtime.backends.ort_run import Run, Values

Array = NDArray[Any]


def add_activation_outputs(model: ir.Model) -> None:
    """Give each QuantizeLinear's input of a canonical graph out, as `<name of the codes>.given`."""
    tap = GraphTap(model)
    for name, quantize in quantizers(model.graph).items():
        tap.give_out(source_of(quantize), f"{name}{GIVEN}")


@contextmanager
def injectable(lowered: Path) -> Iterator[tuple[Path, list[str], bool]]:
    """A copy of the lowered graph where each QuantizeLinear reads an input, or itself if it has none.

    Also the names of the codes, and whether there is a MatMulNBits. The copy is there until the block ends.
    """
    model = ir.load(lowered)
    has_nbits = any(node.op_type == "MatMulNBits" for node in model.graph)
    names = inject_activations(GraphTap(model))
    if not names:
        yield lowered, [], has_nbits
        return
    with saved_beside(model, lowered, "injectable") as path:
        yield path, names, has_nbits


def inject_activations(tap: GraphTap, wanted: Collection[str] | None = None) -> list[str]:
    """Let each QuantizeLinear, or those of the `wanted` codes, read an input and give out what it read.

    Returns the names of the codes.
    """
    found = {name: node for name, node in quantizers(tap.graph).items() if wanted is None or name in wanted}
    for name, quantize in found.items():
        source = source_of(quantize)
        tap.give_out(source, f"{name}{OWN}")
        tap.inject(source, name, [(quantize, 0)])
    return list(found)


def source_of(quantize: ir.Node) -> ir.Value:
    """What is rounded."""
    assert quantize.inputs[0] is not None
    return quantize.inputs[0]


def check_known(names: Collection[str], canonical: Collection[str]) -> None:
    """Raise ParityError where the lowered graph rounds something, of these names, that the canonical one does not."""
    if lost := sorted(set(names) - set(canonical)):
        raise ParityError(f"The lowered graph rounds {lost[0]}, which the canonical one does not. Nothing was written.")


@dataclass
class Tape:
    """What becomes codes goes from the canonical engine to the lowered one, and what that has of its own is compared.

    `record` and `replay` are for a Lockstep.
    """

    names: list[str]
    remainders: Mapping[str, Remainder] = field(default_factory=dict)  # by the names of their codes
    apart: dict[str, tuple[float, float]] = field(default_factory=dict)  # name -> largest difference, largest value

    def record(self, run: Run) -> Values:
        """Make the canonical engine's run; what it gave out."""
        return run.fetch(self.names, GIVEN)

    def replay(self, run: Run, given: Values) -> None:
        """Make the lowered engine's run, and compare its own activations."""
        run.inject({name: given[name] for name in self.names}, GIVEN)
        self.compare(given, run.fetch(self.names, OWN))

    def compare(self, given: Values, own: Values) -> None:
        """Remember how far each of the lowered graph's activations was at most from the canonical one's."""
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
