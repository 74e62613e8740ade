"""The one thread that owns a bundle's engine: requests go in from the event loop, pieces of text come back.

The queue is bounded. Requests that do not fit are refused at once, so that those which were accepted are answered.
"""

import asyncio
import contextlib
import math
import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from piston.core.console import note
from piston.runtime.generate.completion import PositionLogprobs
from piston.runtime.generate.generation import Generation
from piston.runtime.generate.request import Ended, Token, check_fits
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.model import LanguageModel
from piston.serving.errors import DeadlineError, QueueFullError, RequestError, ShuttingDownError, request_error

STALLED = 120.0  # seconds after which a step counts as hanging
FAILURES = 3  # steps that may fail one after the other before the engine counts as broken


@dataclass(frozen=True, slots=True)
class Piece:
    """What one row of a request got: text that is now certain, tokens with their logprobs, or its end.

    `error` is set where the row ended without an answer. `num_tokens` counts the row's tokens so far.
    """

    row: int
    text: str = ""
    positions: tuple[PositionLogprobs, ...] = ()
    num_tokens: int = 0
    finish_reason: str | None = None
    error: RequestError | None = None

    @property
    def is_last(self) -> bool:
        """Whether the row has ended."""
        return self.finish_reason is not None or self.error is not None


@dataclass(slots=True, eq=False)
class Ticket:
    """One HTTP request inside the engine: its rows, and where their pieces arrive (on the event loop)."""

    generations: Sequence[Generation]
    request_id: str
    pieces: "asyncio.Queue[Piece]" = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    def cancel(self) -> None:
        """End every row that has not ended; from any thread."""
        for generation in self.generations:
            generation.request.cancel()


class Observer(Protocol):
    """Who counts what happens, on the engine thread."""

    def token(self, generation: Generation, seconds: float | None) -> None:
        """A token came, so many seconds after the one before; None: the first."""

    def ended(self, generation: Generation, reason: str) -> None:
        """A row ended."""

    def refused(self) -> None:
        """A request was refused because too much waits."""


class EngineThread:
    """Runs a scheduler. `submit` and `cancel` are for the event loop's thread.

    Args:
        model: whose engine is used by nobody else.
        observer: is told of tokens and ends.
        max_queue_requests: rows that may wait beyond those that the engine holds; None: four times those.
        max_queue_tokens: prompt tokens that may wait; None: four times what a row holds.
        max_stall: seconds that a running row may wait for another row's prompt in one step.
    """

    def __init__(
        self,
        model: LanguageModel,
        observer: Observer,
        *,
        max_queue_requests: int | None = None,
        max_queue_tokens: int | None = None,
        max_stall: float | None = None,
    ) -> None:
        cache = model.engine.cache
        self.model = model
        self.num_rows = cache.num_slots
        self.max_queue_requests = 4 * cache.num_slots if max_queue_requests is None else max_queue_requests
        self.max_queue_tokens = 4 * cache.capacity if max_queue_tokens is None else max_queue_tokens
        self._observer = observer
        self._scheduler = Scheduler(model.engine, max_stall=max_stall, keep_prefixes=True)
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._rows: dict[int, tuple[Ticket, int]] = {}  # by id() of the request; the engine thread's own
        self._lock = threading.Lock()  # of the counts below
        self._num_open = 0  # rows that were accepted and have not ended
        self._inbox_tokens = 0
        self._scheduler_tokens = 0
        self._seconds_per_row = 1.0  # how often a row ends while some run, the latest weighing most
        self._step_began: float | None = None
        self._failures = 0
        self._thread = threading.Thread(target=self._run, name=f"engine {model.manifest.model.name}", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def submit(self, ticket: Ticket) -> None:
        """Take a request in.

        Raises:
            MisuseError: a prompt is empty, or too long with its max_tokens.
            RequestError: it has more rows than the queue holds.
            QueueFullError: too much waits already.
            ShuttingDownError: the thread has ended.
        """
        if not self._thread.is_alive():
            raise ShuttingDownError
        num_tokens = 0
        for generation in ticket.generations:
            check_fits(self.model.engine, generation.request)
            num_tokens += len(generation.request.prompt_ids)
        num_new, limit = len(ticket.generations), self.num_rows + self.max_queue_requests
        if num_new > limit:
            raise RequestError(
                f"The request has {num_new} rows (prompts x n), but {limit} may run and wait; send fewer."
            )
        with self._lock:
            waiting = self._inbox_tokens + self._scheduler_tokens
            if self._num_open + num_new > limit or (waiting and waiting + num_tokens > self.max_queue_tokens):
                self._observer.refused()
                raise QueueFullError(
                    f"{self._num_open} requests run and wait, {waiting:,} prompt tokens wait; the limits are "
                    f"{limit} and {self.max_queue_tokens:,}. Try again later.",
                    retry_after=max(1, math.ceil(self._seconds_per_row * num_new)),
                )
            self._num_open += num_new
            self._inbox_tokens += num_tokens
        self._inbox.put(ticket)

    @property
    def num_open(self) -> int:
        """Rows that were accepted and have not ended."""
        return self._num_open

    @property
    def num_running(self) -> int:
        """Rows that hold a slot."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a slot."""
        return max(self._num_open - self._scheduler.num_running, 0)

    @property
    def cache_usage(self) -> float:
        """Share of the cache's positions that running and kept rows fill."""
        cache = self.model.engine.cache
        return float(cache.lengths.sum()) / (cache.num_slots * cache.capacity)

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

    def stop(self) -> None:
        """End what still runs with an error, and the thread. May wait for one step."""
        self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take_in(wait=not self._scheduler.has_work):
                self._step()
        finally:
            self._scheduler.close()
            with contextlib.suppress(queue.Empty):
                while True:
                    if (ticket := self._inbox.get(block=False)) is not None:
                        self._rows |= {id(item.request): (ticket, row) for row, item in enumerate(ticket.generations)}
            self._fail_all(ShuttingDownError("The server shut down before this request was finished."))

    def _take_in(self, *, wait: bool) -> bool:
        """Move what has arrived into the scheduler; False once the thread is to end."""
        with contextlib.suppress(queue.Empty):
            while True:
                ticket = self._inbox.get(block=wait)
                wait = False
                if ticket is None:
                    return False
                with self._lock:
                    self._inbox_tokens -= sum(len(item.request.prompt_ids) for item in ticket.generations)
                for row, generation in enumerate(ticket.generations):
                    self._rows[id(generation.request)] = ticket, row
                    self._scheduler.add(generation.request)
        return True

    def _step(self) -> None:
        self._step_began = time.monotonic()
        try:
            for event in self._scheduler.step():
                if isinstance(event, Token):
                    self._take_token(event)
                else:
                    self._take_end(event)
            self._failures = 0
        except Exception as problem:  # noqa: BLE001 - a step of all rows failed: they end, the next ones may succeed
            self._failures += 1
            note(f"a step of the engine failed: {problem!r}", "error")
            self._scheduler.close()
            self._fail_all(request_error(problem))
        finally:
            self._step_began = None
            self._scheduler_tokens = self._scheduler.num_waiting_tokens

    def _take_token(self, token: Token) -> None:
        ticket, row = self._rows[id(token.request)]
        generation = ticket.generations[row]
        before, num_known = generation.last_at, len(generation.logprobs)
        try:
            text = generation.push(token)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
            token.request.cancel()
            self._end(ticket, row, _reported(ticket, problem), "error")
            return
        self._observer.token(generation, generation.last_at - before if before else None)
        num_tokens = len(token.request.output_ids)
        piece = Piece(row, text, tuple(generation.logprobs[num_known:]), num_tokens, generation.finish_reason)
        if generation.finish_reason is not None:
            self._close_row(generation, generation.finish_reason)
        elif token.request.is_cancelled:
            self._close_row(generation, "abort")
            return
        _deliver(ticket, piece)

    def _take_end(self, ended: Ended) -> None:
        ticket, row = self._rows[id(ended.request)]
        if ended.reason == "error":
            assert ended.error is not None
            self._end(ticket, row, _reported(ticket, ended.error), "error")
        elif ended.reason == "deadline":
            self._end(ticket, row, DeadlineError(), "abort")
        else:
            self._close_row(ticket.generations[row], "abort")

    def _end(self, ticket: Ticket, row: int, problem: RequestError, reason: str) -> None:
        self._close_row(ticket.generations[row], reason)
        _deliver(ticket, Piece(row, error=problem))

    def _close_row(self, generation: Generation, reason: str) -> None:
        del self._rows[id(generation.request)]
        with self._lock:
            self._num_open -= 1
        seconds = (time.perf_counter() - generation.request.added_at) / self.num_rows
        self._seconds_per_row = 0.7 * self._seconds_per_row + 0.3 * seconds
        self._observer.ended(generation, reason)

    def _fail_all(self, problem: RequestError) -> None:
        for ticket, row in list(self._rows.values()):
            self._end(ticket, row, problem, "error")


def _reported(ticket: Ticket, problem: Exception) -> RequestError:
    error = request_error(problem)
    if error.status >= 500:  # noqa: PLR2004 - the class of statuses
        note(f"request {ticket.request_id} failed: {problem!r}", "error")
    return error


def _deliver(ticket: Ticket, piece: Piece) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        ticket.loop.call_soon_threadsafe(ticket.pieces.put_nowait, piece)
