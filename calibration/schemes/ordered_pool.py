"""Pieces of work side by side in threads, their results in order and only a few ahead of who takes them."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")
AHEAD = 2  # results for each thread that are computed or waited for: memory does not grow with the pieces


def imap_bounded(work: Callable[[int], Result], count: int, *, threads: int) -> Iterator[Result]:
    """work(0), work(1) and so on to count - 1; once nobody takes more, what was begun is finished and nothing else."""
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque[Future[Result]]()
        try:
            for index in range(count):
                if len(waiting) == AHEAD * threads:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(work, index))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
