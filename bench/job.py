"""Jobs of a stage benchmark: commands of recipes, and the Pistons that run them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One command of a recipe.

    `words(work, read)` is its command line: it writes below `work`; `read` is the output of the job of the name
    `reads`, None for an export.
    """

    name: str
    verb: str
    options: tuple[str, ...]
    directory: Path  # base of relative paths among the options
    reads: str | None
    words: Callable[[Path, Path | None], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """A Piston that runs the jobs: the Python it is installed in."""

    name: str
    python: str
