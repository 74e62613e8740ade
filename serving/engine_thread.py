"""The one thread that owns a bundle's engine: requests go in from the event loop, results come back to it.

The queue is bounded. Requests that do not fit are refused at once, so that those which were accepted are answered.
What the thread does with its requests is the subclass's.
"""

import contextlib
import math
import queue
import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from piston.core.console import note
from piston.serving.errors import UNFINISHED, QueueFullError, RequestError, ShuttingDownError, request_error

STALLED = 120.0  # seconds after which a step counts as hanging
FAILURES = 3  # steps that may fail one after the other before the engine counts as broken


class Queued(Protocol):
    """One HTTP request inside an engine thread. A row is one prompt, or one text, of it."""

    @property
    def request_id(self) -> str:
        """As the log has it."""

    @property
    def num_rows(self) -> int:
        """Rows that it has."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""


class QueueObserver(Protocol):
    """Counts what happens."""

    def refused(self) -> None:
        """A request was refused because too much waits."""


Ticket = TypeVar("Ticket", bound=Queued)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine thread takes.

    Attributes:
        num_rows: rows that the engine works on at once; an idle one takes so many whatever `max_open` is.
        max_open: rows that may run and wait.
        max_queue_tokens: tokens that may wait.
    """

    num_rows: int
    max_open: int
    max_queue_tokens: int

    def rows(self, *, is_idle: bool) -> int:
        """Rows that may run and wait now."""
        return max(self.num_rows, self.max_open) if is_idle else self.max_open


class EngineThread(ABC, Generic[Ticket]):
    """A thread and its bounded queue. `submit` is for the event loop's thread.

    Args:
        name: of the bundle, for logs.
        observer: is told of refusals.
        limits: what may run and wait.
    """

    def __init__(self, name: str, observer: QueueObserver, limits: Limits) -> None:
        self.limits = limits
        self._observed = observer
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the counts below
        self._num_open = 0  # rows that were accepted and have not ended
        self._inbox_tokens = 0
        self._waiting_tokens = 0  # behind the inbox, as of the last step
        self._seconds_per_row = 1.0  # how often a row ends while some run, the latest weighing most
        self._step_began: float | None = None
        self._failures = 0
        self.is_stopping = False  # a step that takes long should end
        self._thread = threading.Thread(target=self._run, name=f"engine {name}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def check_room(self, num_new: int = 1) -> None:
        """Refuse a request of so many rows at least, before anything is computed for it; raises as `submit`."""
        self._check_size(num_new)
        if not self._has_room(num_new):
            self._refuse(num_new)

    def submit(self, ticket: Ticket) -> None:
        """Take a request in.

        Raises:
            RequestError: it has more rows than the queue holds.
            QueueFullError: too much waits already.
            ShuttingDownError: the thread has ended.
        """
        if not self._thread.is_alive():
            raise ShuttingDownError
        num_new, num_tokens = ticket.num_rows, ticket.num_tokens
        self._check_size(num_new)
        with self._lock:
            waiting = self._inbox_tokens + self._waiting_tokens
            if not self._has_room(num_new) or (waiting and waiting + num_tokens > self.limits.max_queue_tokens):
                self._refuse(num_new)
            self._num_open += num_new
            self._inbox_tokens += num_tokens
        self._inbox.put(ticket)

    def _check_size(self, num_new: int) -> None:
        if num_new > (limit := self.limits.rows(is_idle=True)):
            raise RequestError(
                f"The request has {num_new:,} rows (prompts x n, or texts), but {limit:,} may run and wait; send fewer."
            )

    def _has_room(self, num_new: int) -> bool:
        return self._num_open + num_new <= self.limits.rows(is_idle=not self._num_open)

    def _refuse(self, num_new: int) -> None:
        self._observed.refused()
        waiting = self._inbox_tokens + self._waiting_tokens
        raise QueueFullError(
            f"{self._num_open} requests run and wait, {waiting:,} prompt tokens wait; "
            f"the limits are {self.limits.max_open} and {self.limits.max_queue_tokens:,}. Try again later.",
            retry_after=max(1, math.ceil(self._seconds_per_row * num_new)),
        )

    @property
    def num_open(self) -> int:
        """Rows that were accepted and have not ended."""
        return self._num_open

    @property
    @abstractmethod
    def num_running(self) -> int:
        """Rows that the engine works on."""

    @property
    def num_waiting(self) -> int:
        """Rows that the engine does not work on yet."""
        return max(self._num_open - self.num_running, 0)

    @property
    def cache_usage(self) -> float | None:
        """Share of the cache's positions that running and kept rows fill; None where there is no cache."""
        return None

    def problem(self) -> str | None:
        """What is wrong with the engine, if something is."""
        if not self._thread.is_alive():
            return "The engine thread has ended."
        if self._failures >= FAILURES:
            return f"The last {self._failures} steps of the engine failed."
        began = self._step_began
        if began is not None and time.monotonic() - began > STALLED:
            return f"A step of the engine has taken {time.monotonic() - began:.0f} s."
        return None

    def report_progress(self) -> None:
        """A step that takes long moves on, on the engine thread: it does not count as hanging."""
        self._step_began = time.monotonic()

    def stop(self) -> None:
        """End what still runs with an error, and the thread. May wait for one step."""
        self.is_stopping = True
        self._inbox.put(None)
        self._thread.join()

    @property
    @abstractmethod
    def _has_work(self) -> bool:
        """Whether a step would do anything."""

    @abstractmethod
    def _admit(self, ticket: Ticket) -> None:
        """Take over a request that was accepted."""

    @abstractmethod
    def _work(self) -> bool:
        """One step of the engine; False where it failed for every row. An error that is raised ends all that runs."""

    @abstractmethod
    def _count_waiting_tokens(self) -> int:
        """Tokens of admitted rows that wait."""

    @abstractmethod
    def _drop(self) -> None:
        """Let go of everything that runs, after a step failed or at the end."""

    @abstractmethod
    def _fail_all(self, problem: RequestError) -> None:
        """End every row that was admitted with an error."""

    def _run(self) -> None:
        try:
            while self._take_in(wait=not self._has_work):
                self._step()
        finally:
            self._drop()
            with contextlib.suppress(queue.Empty):
                while True:
                    if (ticket := self._inbox.get(block=False)) is not None:
                        self._admit(ticket)
            self._fail_all(ShuttingDownError(UNFINISHED))

    def _take_in(self, *, wait: bool) -> bool:
        """Admit what has arrived; False once the thread is to end."""
        with contextlib.suppress(queue.Empty):
            while True:
                ticket = self._inbox.get(block=wait)
                wait = False
                if ticket is None:
                    return False
                self._admit(ticket)
                with self._lock:
                    self._inbox_tokens -= ticket.num_tokens
                    self._waiting_tokens = self._count_waiting_tokens()
        return True

    def _step(self) -> None:
        self._step_began = time.monotonic()
        try:
            self._failures = 0 if self._work() else self._failures + 1
        except Exception as problem:  # noqa: BLE001 - a step of all rows failed: they end, the next ones may succeed
            self._failures += 1
            note(f"a step of the engine failed: {problem!r}", "error")
            self._drop()
            self._fail_all(request_error(problem))
        finally:
            self._step_began = None
            self._waiting_tokens = self._count_waiting_tokens()

    def _close_rows(self, num_rows: int, seconds_per_row: float) -> None:
        """Rows have ended. The step goes on, so what waits is counted here too: a client may ask again at once."""
        with self._lock:
            self._num_open -= num_rows
            self._waiting_tokens = self._count_waiting_tokens()
        self._seconds_per_row = 0.7 * self._seconds_per_row + 0.3 * seconds_per_row


def reported(ticket: Queued, problem: Exception) -> RequestError:
    """What the client is told; what is not its fault is in the log."""
    error = request_error(problem)
    if error.status >= 500:  # noqa: PLR2004 - the class of statuses
        note(f"request {ticket.request_id} failed: {problem!r}", "error")
    return error
