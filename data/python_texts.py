"""Code and documentation from the Python that runs: sources and docstrings of its standard library, by a fixed list.

Piston itself holds no such text. The bytes differ between versions of Python, so each name tells the version.
"""

import importlib
import importlib.util
import inspect
import platform
from collections.abc import Iterator
from types import ModuleType

from piston.core.errors import MisuseError

SOURCES = ("csv", "graphlib", "heapq", "json.decoder", "sched", "textwrap")
DOCSTRINGS = ("collections", "datetime", "functools", "itertools", "math", "random", "re", "struct")


def python_texts() -> Iterator[tuple[str, bytes]]:
    """The name and the UTF-8 bytes of each text: first the sources, then the docstrings.

    Raises:
        MisuseError: the standard library was installed without its sources.
    """
    version = f"Python {platform.python_version()}"
    for name in SOURCES:
        yield f"{version}, source of {name}", _source(name).encode()
    for name in DOCSTRINGS:
        yield f"{version}, docstrings of {name}", _docstrings(importlib.import_module(name)).encode()


def _source(name: str) -> str:
    spec = importlib.util.find_spec(name)
    try:
        source = spec.loader.get_source(name)  # type: ignore[union-attr]  # the standard library has a loader
    except (AttributeError, OSError, ImportError):
        source = None
    if not source:
        raise MisuseError(
            f"This Python has no source of its module {name}, which builtin data reads; "
            "install Python with its standard library as .py files, or give your own text as --data FILE."
        )
    return str(source)


def _docstrings(module: ModuleType) -> str:
    """Of the module, its public functions and classes, and their public methods, in order of their names."""
    paragraphs = [f"{module.__name__}\n\n{inspect.getdoc(module) or ''}"]
    for name, value in _public(module):
        if not callable(value):
            continue
        items = [(name, value)]
        if inspect.isclass(value):
            items += [(f"{name}.{member}", item) for member, item in _public(value)]
        texts = [(label, inspect.getdoc(item)) for label, item in items]
        paragraphs += [f"{module.__name__}.{label}\n\n{text}" for label, text in texts if text]
    return "\n\n\n".join(paragraphs) + "\n"


def _public(owner: object) -> list[tuple[str, object]]:
    return [(name, value) for name, value in sorted(vars(owner).items()) if not name.startswith("_")]
