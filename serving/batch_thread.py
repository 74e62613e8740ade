"""The engine thread of an encoder: rows of all requests are batched by their tokens, one batch after the other.

Nothing waits for a batch to fill: what came while the engine worked is the next one. Requests take turns, row by row,
so that one text does not wait behind the thousand of another request.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from piston.core.errors import NotFiniteError
from piston.serving.engine_thread import EngineThread, Limits, QueueObserver, reported
from piston.serving.errors import DeadlineError, RequestError
from piston.serving.tracing import current_context

Row = TypeVar("Row")


@dataclass(slots=True, eq=False)
class BatchTicket(Generic[Row]):
    """One HTTP request inside the engine.

    Args:
        rows: what the engine is run on, such as token ids.
        lengths: tokens of each row.
        request_id: as the log has it.
        deadline: a time.monotonic() value after which no row is run any more.
        trace: what the spans of its rows are under.
    """

    rows: Sequence[Row]
    lengths: Sequence[int]
    request_id: str
    deadline: float | None = None
    trace: Any = field(default_factory=current_context)
    results: list[Any] = field(default_factory=list)
    num_taken: int = 0  # rows that were put into a batch
    num_left: int = 0  # rows without a result
    is_cancelled: bool = False
    added_at: float = field(default_factory=time.perf_counter)
    began_at: float = 0.0
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    done: "asyncio.Future[list[Any]]" = field(init=False)

    def __post_init__(self) -> None:
        self.done = self.loop.create_future()
        self.results, self.num_left = [None] * len(self.rows), len(self.rows)

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Of all rows."""
        return sum(self.lengths)


class BatchObserver(QueueObserver, Protocol):
    """Counts what happens, on the engine thread."""

    def batch(self, num_rows: int, num_tokens: int) -> None:
        """A batch was run."""

    def finished(self, ticket: BatchTicket[Any], reason: str) -> None:
        """A request ended."""


Taken = list[tuple[BatchTicket[Row], int]]


class BatchThread(EngineThread[BatchTicket[Row]], Generic[Row]):
    """Runs batches.

    Args:
        name: of the bundle, for logs.
        run: gives one result for each row, in their order.
        observer: is told of batches and ends.
        max_batch_tokens: tokens of a batch; a longer row is a batch of its own.
        limits: what may run and wait.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Sequence[Row]], Iterable[Any]],
        observer: BatchObserver,
        *,
        max_batch_tokens: int,
        limits: Limits,
    ) -> None:
        super().__init__(name, observer, limits)
        self.max_batch_tokens = max_batch_tokens
        self._run_rows = run
        self._observer = observer
        self._waiting: deque[BatchTicket[Row]] = deque()  # that have rows which were not taken
        self._open: dict[int, BatchTicket[Row]] = {}
        self._num_running = 0

    async def answer(self, ticket: BatchTicket[Row]) -> list[Any]:
        """The result of each row; errors as of `submit`, and of the engine. No row is run once nobody waits."""
        self.submit(ticket)
        try:
            return await ticket.done
        finally:
            ticket.is_cancelled = True

    @property
    def num_running(self) -> int:
        """Rows of the batch that is run."""
        return self._num_running

    @property
    def _has_work(self) -> bool:
        return bool(self._waiting)

    def _admit(self, ticket: BatchTicket[Row]) -> None:
        self._waiting.append(ticket)
        self._open[id(ticket)] = ticket

    def _work(self) -> bool:
        self._end_cancelled()
        taken = self._take()
        if not taken:
            return True
        self._waiting_tokens = self._count_waiting_tokens()  # what is run does not wait
        left, problem = self._run_batch(taken)
        if problem is None:
            return True
        tickets = list({id(ticket): ticket for ticket, _ in left}.values())
        if len(tickets) == 1:
            return self._end_failed(tickets[0], problem)
        # One by one, so that requests which are not at fault are answered.
        answered = [self._work_alone([item for item in left if item[0] is ticket]) for ticket in tickets]
        return any(answered)

    def _work_alone(self, taken: Taken[Row]) -> bool:
        """Rows of one request; whether the engine is well."""
        _, problem = self._run_batch(taken)
        return problem is None or self._end_failed(taken[0][0], problem)

    def _run_batch(self, taken: Taken[Row]) -> tuple[Taken[Row], Exception | None]:
        """Run rows, and deliver each result as it comes; the rows that have none, and why."""
        self._observer.batch(len(taken), sum(ticket.lengths[index] for ticket, index in taken))
        left = deque(taken)
        self._num_running = len(taken)
        try:
            for result in self._run_rows([ticket.rows[index] for ticket, index in taken]):
                self._deliver(*left.popleft(), result)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is that of one of these requests
            return list(left), problem
        finally:
            self._num_running = 0
        assert not left
        return [], None

    def _end_failed(self, ticket: BatchTicket[Row], problem: Exception) -> bool:
        """End a request with an error; whether that is of the request, such as its deadline, and not of the engine.

        A text whose numbers are not finite says nothing about the next one; such texts do not make /health fail.
        """
        error = reported(ticket, problem)
        self._end(ticket, error, "error")
        return error is problem or isinstance(problem, NotFiniteError) or error.status < 500  # noqa: PLR2004 - the class of statuses

    def _take(self) -> Taken[Row]:
        """Rows of the next batch: one of each request in turn, until the tokens are enough."""
        taken: Taken[Row] = []
        num_tokens = 0
        while self._waiting:
            ticket = self._waiting[0]
            num_tokens += ticket.lengths[ticket.num_taken]
            if taken and num_tokens > self.max_batch_tokens:
                break
            ticket.began_at = ticket.began_at or time.perf_counter()
            taken.append((ticket, ticket.num_taken))
            ticket.num_taken += 1
            self._waiting.popleft()
            if ticket.num_taken < ticket.num_rows:
                self._waiting.append(ticket)
        return taken

    def _deliver(self, ticket: BatchTicket[Row], index: int, result: Any) -> None:
        ticket.results[index] = result
        ticket.num_left -= 1
        if ticket.num_left == 0:
            self._end(ticket, None, "abort" if ticket.is_cancelled else "stop")

    def _end_cancelled(self) -> None:
        now = time.monotonic()
        for ticket in list(self._waiting):
            if ticket.is_cancelled:
                self._end(ticket, None, "abort")
            elif ticket.deadline is not None and now >= ticket.deadline:
                self._end(ticket, DeadlineError(), "abort")

    def _end(self, ticket: BatchTicket[Row], problem: RequestError | None, reason: str) -> None:
        del self._open[id(ticket)]
        with contextlib.suppress(ValueError):
            self._waiting.remove(ticket)
        seconds = time.perf_counter() - (ticket.began_at or ticket.added_at)
        self._close_rows(ticket.num_rows, seconds / ticket.num_rows)
        self._observer.finished(ticket, reason)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            ticket.loop.call_soon_threadsafe(_resolve, ticket, problem)

    def _count_waiting_tokens(self) -> int:
        return sum(sum(ticket.lengths[ticket.num_taken :]) for ticket in self._waiting)

    def _drop(self) -> None:
        self._waiting.clear()

    def _fail_all(self, problem: RequestError) -> None:
        for ticket in list(self._open.values()):
            self._end(ticket, problem, "error")


def _resolve(ticket: BatchTicket[Any], problem: RequestError | None) -> None:
    if ticket.done.done():
        return
    if problem is None:
        ticket.done.set_result(ticket.results)
    else:
        ticket.done.set_exception(problem)
