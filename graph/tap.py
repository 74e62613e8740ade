"""Inner values of a graph given out as outputs, and inputs injected in their place, to observe and compare graphs.

A name that ends in GIVEN carries a value from one graph to another: an output there, an input here. One that ends in
OWN is an output with what a graph with such an input computed itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

GIVEN, OWN = ".given", ".own"


class GraphTap:
    """Adds outputs and inputs to a graph, in place.

    Args:
        model: the graph's.
        names: computed values that become outputs as they are, unless they are outputs already.
    """

    def __init__(self, model: ir.Model, names: Iterable[str] = ()) -> None:
        self.graph = model.graph
        self.values = {str(value.name): value for node in model.graph for value in node.outputs}
        self.injected = dict[str, ir.Value]()  # by name, without the ending
        known = {value.name for value in model.graph.outputs}
        self.graph.outputs.extend(self.values[name] for name in names if name not in known)

    def give_out(self, value: ir.Value, name: str) -> None:
        """Make a copy of a value, computed or an input, the output `name`: one may be given out several times."""
        node = value.producer()
        copy = ir.node("Identity", [value], name=name)
        copy.outputs[0].name, copy.outputs[0].type, copy.outputs[0].shape = name, value.type, value.shape
        if node is None:
            self.graph.insert_before(self.graph[0], copy)
        else:
            self.graph.insert_after(node, copy)
        self.graph.outputs.append(copy.outputs[0])

    def inject(self, value: ir.Value, name: str, uses: Iterable[tuple[ir.Node, int]] | None = None) -> None:
        """Let those who read `value` so far, or these uses alone, read the input `<name>.given`."""
        readers: list[tuple[ir.Node, int]] = list(value.uses()) if uses is None else list(uses)
        given = self.add_input(name, value.type, value.shape)
        for node, index in readers:
            node.replace_input_with(index, given)

    def add_input(self, name: str, dtype: ir.TypeProtocol | None, shape: ir.Shape | None) -> ir.Value:
        """The input `<name>.given`, made once."""
        if name not in self.injected:
            self.injected[name] = ir.Value(name=f"{name}{GIVEN}", type=dtype, shape=shape)
            self.graph.inputs.append(self.injected[name])
        return self.injected[name]


@contextmanager
def saved_beside(model: ir.Model, original: Path, prefix: str) -> Iterator[Path]:
    """Save a changed graph beside the one it was made from, whose weights it reads, for as long as the block lasts."""
    path = original.with_name(f"{prefix}.{original.name}")
    try:
        ir.save(model, path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def without_ending(names: Sequence[str | None], ending: str) -> list[str]:
    """Those of the names that have the ending, without it."""
    return [name.removesuffix(ending) for name in names if name is not None and name.endswith(ending)]
