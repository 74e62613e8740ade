"""Two engines in lockstep: they do the same work, and in each run the second goes on from what the first computed."""

from collections import deque
from collections.abc import Callable
from typing import TypeVar

from piston.runtime.backends.ort_cpu import OrtEngine
from piston.runtime.backends.ort_run import Run, Values

T = TypeVar("T")


class Lockstep:
    """The two of them; each may make several runs of the session for one piece of work.

    Args:
        first: works first.
        second: works second, on inputs of the same shapes.
        record: makes a run of the first, and returns what the second needs of it.
        replay: makes the same run of the second, injects what the first gave out, and compares. Without the two,
            each runs as it is.
    """

    def __init__(
        self,
        first: OrtEngine,
        second: OrtEngine,
        record: Callable[[Run], Values] | None = None,
        replay: Callable[[Run, Values], None] | None = None,
    ) -> None:
        self.first, self.second = first, second
        self._runs = deque[Values]()
        if record is not None and replay is not None:
            first.around_run = lambda run: self._runs.append(record(run))
            second.around_run = lambda run: replay(run, self._runs.popleft())

    def both(self, work: Callable[[OrtEngine], T]) -> tuple[T, T]:
        """What the first makes of some work, and the second."""
        return work(self.first), work(self.second)
