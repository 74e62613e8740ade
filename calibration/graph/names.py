"""Names of the layers of a graph: the path of the module, and behind it which of its runs it is."""

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence

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


def by_module(patterns: Iterable[str], names: Sequence[str]) -> tuple[str, ...]:
    """Patterns with those that name single runs as the paths of their modules: one weight is quantized in all its runs.

    `names` are those of all layers. Patterns that name no layer stay as they are.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        runs = [name for name in names if fnmatch.fnmatchcase(name, pattern)] if REPEATED in pattern else []
        found |= dict.fromkeys([module_of(name) for name in runs] or [pattern])
    return tuple(found)


def module_of(name: str) -> str:
    """The path of the module whose run has this name."""
    return name.partition(REPEATED)[0]
