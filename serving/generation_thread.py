"""The engine thread of a language model: a scheduler runs the rows of all requests together."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from piston.runtime.generate.chunk_size import Stall
from piston.runtime.generate.completion import PositionLogprobs
from piston.runtime.generate.generation import Generation
from piston.runtime.generate.hypotheses import completion_of
from piston.runtime.generate.request import Ended, Found, Token, check_fits
from piston.runtime.generate.scheduler import Scheduler
from piston.runtime.model import LanguageModel
from piston.runtime.tasks.text2text_generation import TextToText
from piston.serving.engine_thread import EngineThread, Limits, QueueObserver, reported
from piston.serving.errors import DeadlineError, RequestError
from piston.serving.tracing import current_context


@dataclass(frozen=True, slots=True)
class Piece:
    """What one answer of a request got: text that is now certain, tokens with their logprobs, or its end.

    `row` counts the answers of all rows; a row has one, or the several that a beam search finds. `error` is set where
    the row ended without an answer. `num_tokens` counts the answer's tokens so far.
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
    trace: Any = field(default_factory=current_context)
    pieces: "asyncio.Queue[Piece]" = field(default_factory=asyncio.Queue)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    @property
    def num_rows(self) -> int:
        """Prompts x n; of beam searches prompts x beams."""
        return sum(generation.request.num_slots for generation in self.generations)

    @property
    def num_tokens(self) -> int:
        """Of all prompts."""
        return sum(generation.request.num_given for generation in self.generations)

    def cancel(self) -> None:
        """End every row that has not ended; from any thread."""
        for generation in self.generations:
            generation.request.cancel()


class Observer(QueueObserver, Protocol):
    """Counts what happens, on the engine thread."""

    def token(self, generation: Generation, seconds: float | None) -> None:
        """A token came, so many seconds after the one before; None: the first."""

    def found(self, generation: Generation, num_tokens: int) -> None:
        """A beam search came to its end with answers of so many tokens."""

    def ended(self, ticket: Ticket, generation: Generation, reason: str) -> None:
        """A row of a request ended."""


class GenerationThread(EngineThread[Ticket]):
    """Runs a scheduler.

    Args:
        model: whose engine is used by nobody else.
        observer: is told of tokens and ends.
        max_open: rows that may run and wait.
        max_queue_tokens: prompt tokens that may wait; None: what all rows hold, at least four times what one holds, so
            that prompts which come together for idle rows are never refused.
        max_stall: seconds that a running row may wait for another row's prompt in one step, "auto" or None (Scheduler).
    """

    def __init__(
        self,
        model: "LanguageModel | TextToText",
        observer: Observer,
        *,
        max_open: int,
        max_queue_tokens: int | None = None,
        max_stall: Stall | None = None,
    ) -> None:
        cache = model.engine.cache
        default_tokens = max(4, cache.num_slots) * cache.capacity
        super().__init__(
            model.manifest.model.name,
            observer,
            Limits(
                num_rows=cache.num_slots,
                max_open=max_open,
                max_queue_tokens=default_tokens if max_queue_tokens is None else max_queue_tokens,
            ),
        )
        self.model = model
        self._observer = observer
        self._scheduler = Scheduler(model.engine, max_stall=max_stall, keep_prefixes=True)
        self._rows: dict[int, tuple[Ticket, int]] = {}  # by id() of the request; the engine thread's own

    def submit(self, ticket: Ticket) -> None:
        """See EngineThread; raises MisuseError where a prompt is empty, or too long with its max_tokens."""
        for generation in ticket.generations:
            check_fits(self.model.engine, generation.request)
        super().submit(ticket)

    @property
    def num_running(self) -> int:
        """Rows that hold a slot."""
        return self._scheduler.num_running

    @property
    def cache_usage(self) -> float:
        """See EngineThread."""
        cache = self.model.engine.cache
        return float(cache.lengths.sum()) / (cache.num_slots * cache.capacity)

    @property
    def _has_work(self) -> bool:
        return self._scheduler.has_work

    def _admit(self, ticket: Ticket) -> None:
        for row, generation in enumerate(ticket.generations):
            self._rows[id(generation.request)] = ticket, row
            self._scheduler.add(generation.request)

    def _work(self) -> bool:
        for event in self._scheduler.step():
            if isinstance(event, Token):
                self._take_token(event)
            elif isinstance(event, Found):
                self._take_found(event)
            else:
                self._take_end(event)
        return True

    def _count_waiting_tokens(self) -> int:
        return self._scheduler.num_waiting_tokens

    def _drop(self) -> None:
        self._scheduler.close()

    def _fail_all(self, problem: RequestError) -> None:
        for ticket, row in list(self._rows.values()):
            self._end(ticket, row, problem, "error")

    def _take_token(self, token: Token) -> None:
        ticket, row = self._rows[id(token.request)]
        generation = ticket.generations[row]
        before, num_known = generation.last_at, len(generation.logprobs)
        try:
            text = generation.push(token)
        except Exception as problem:  # noqa: BLE001 - whatever it is, it is this row's
            token.request.cancel()
            self._end(ticket, row, reported(ticket, problem), "error")
            return
        self._observer.token(generation, generation.last_at - before if before else None)
        num_tokens = len(token.request.output_ids)
        piece = Piece(row, text, tuple(generation.logprobs[num_known:]), num_tokens, generation.finish_reason)
        if generation.finish_reason is not None:
            self._close_row(generation, generation.finish_reason)
        _deliver(ticket, piece)

    def _take_found(self, found: Found) -> None:
        """Deliver each answer of a beam search whole."""
        request = found.request
        ticket, row = self._rows[id(request)]
        generation = ticket.generations[row]
        generation.first_at = generation.last_at = time.perf_counter()
        request.output_ids = list(found.hypotheses[0].token_ids)
        self._observer.found(generation, sum(len(hypothesis.token_ids) for hypothesis in found.hypotheses))
        answers = [completion_of(generation, hypothesis) for hypothesis in found.hypotheses]
        self._close_row(generation, "stop")
        for index, answer in enumerate(answers):
            place = row * request.num_answers + index
            piece = Piece(place, answer.text, num_tokens=len(answer.token_ids), finish_reason=answer.finish_reason)
            _deliver(ticket, piece)

    def _take_end(self, ended: Ended) -> None:
        if id(ended.request) not in self._rows:  # ended by its text, or by an error of it, and cancelled for that
            return
        ticket, row = self._rows[id(ended.request)]
        if ended.reason == "error":
            assert ended.error is not None
            self._end(ticket, row, reported(ticket, ended.error), "error")
        elif ended.reason == "deadline":
            self._end(ticket, row, DeadlineError(), "abort")
        else:
            self._close_row(ticket.generations[row], "abort")

    def _end(self, ticket: Ticket, row: int, problem: RequestError, reason: str) -> None:
        self._close_row(ticket.generations[row], reason)
        _deliver(ticket, Piece(row, error=problem))

    def _close_row(self, generation: Generation, reason: str) -> None:
        request = generation.request
        ticket, _ = self._rows.pop(id(request))
        seconds = (time.perf_counter() - request.added_at) / self.limits.num_rows
        self._close_rows(request.num_slots, seconds * request.num_slots)
        self._observer.ended(ticket, generation, reason)


def _deliver(ticket: Ticket, piece: Piece) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        ticket.loop.call_soon_threadsafe(ticket.pieces.put_nowait, piece)
