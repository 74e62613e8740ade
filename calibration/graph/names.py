"""Names of the layers of a graph: the path of the module, and behind it which of its runs it is."""

from collections import Counter
from collections.abc import Iterable

REPEATED = "@"  # between the path of a module and the number of its run, from the second on


def own_names(paths: Iterable[str]) -> list[str]:
    """A name for each layer, by the paths of their modules in the order of the graph.

    A module is run several times where layers share it, as in ALBERT.
    """
    runs: Counter[str] = Counter()
    names = []
    for path in paths:
        runs[path] += 1
        names.append(path if runs[path] == 1 else f"{path}{REPEATED}{runs[path]}")
    return names


def module_of(name: str) -> str:
    """The path of the module whose run has this name."""
    return name.partition(REPEATED)[0]
