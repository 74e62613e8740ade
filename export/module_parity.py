"""A graph compared with the module that it was traced from, on examples of several sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from piston.core.bundle.examples import Example
from piston.core.bundle.interface import GraphInterface
from piston.core.errors import ParityError
from piston.runtime.backends.session import OrtOptions, OrtSession


@dataclass(frozen=True, slots=True)
class Parity:
    """How far the graph is from the module, and at which sizes of the dynamic axes: recorded in the manifest."""

    max_abs: float
    bound: float
    sizes: list[dict[str, int]]


def check_examples(path: Path, interface: GraphInterface, examples: Sequence[Example]) -> Parity:
    """Run a graph on the inputs of examples; raises ParityError where an output is beyond its bound."""
    worst, bound, sizes = 0.0, 0.0, []
    session = OrtSession.open(path, interface, OrtOptions(optimize=True, prepack=False))
    try:
        for example in examples:
            found = session.run(example.inputs)
            sizes.append(interface.sizes_of({name: array.shape for name, array in example.inputs.items()}))
            for name in example.outputs:
                allowed = example.bound(name)
                difference = example.difference(name, found[name])
                worst, bound = max(worst, difference), max(bound, allowed)
                if not difference <= allowed:
                    raise ParityError(
                        f"The exported graph differs from the module in {name!r} at {shown(sizes[-1])}: by "
                        f"{difference:.3g}, allowed are {allowed:.3g}."
                    )
    finally:
        session.close()
    return Parity(worst, bound, sizes)


def shown(sizes: Mapping[str, int]) -> str:
    """Sizes of dynamic axes, for people."""
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example's size"
