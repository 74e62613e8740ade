"""The thread of an encoder without HTTP: whatever is asked, cancelled, late or broken, all are answered or told."""

import asyncio
import random
import time

import pytest

from piston.core.errors import MisuseError, NotFiniteError
from piston.serving.batch_thread import BatchThread, BatchTicket
from piston.serving.engine_thread import FAILURES, Limits
from piston.serving.errors import DeadlineError, QueueFullError, RequestError


class Counts:
    """An observer."""

    def __init__(self):
        self.batches, self.reasons, self.num_refused = [], [], 0

    def batch(self, num_rows, num_tokens):
        self.batches.append((num_rows, num_tokens))

    def finished(self, _ticket, reason):
        self.reasons.append(reason)

    def refused(self):
        self.num_refused += 1


class Engine:
    """Doubles numbers; a negative one breaks it."""

    def __init__(self):
        self.rows = []

    def run(self, rows):
        self.rows += rows
        time.sleep(0.0005)
        if min(rows) < 0:
            raise ValueError("negative")
        return [2 * row for row in rows]


def thread_of(engine, counts, **limits):
    given = Limits(**({"num_rows": 1, "max_open": 4096, "max_queue_tokens": 10**6} | limits))
    return BatchThread("toy", engine.run, counts, max_batch_tokens=50, limits=given)


async def until(condition):
    while not condition():  # noqa: ASYNC110 - counted on another thread
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(4))
def test_everybody_is_answered_or_told_and_nothing_is_left(seed):
    dice, engine, counts = random.Random(seed), Engine(), Counts()  # noqa: S311 - a test's dice

    async def ask(thread, n):
        await asyncio.sleep(dice.random() * 0.05)
        rows = [dice.randrange(-1 if dice.random() < 0.1 else 0, 1000) for _ in range(dice.randint(1, 12))]
        deadline = time.monotonic() - 1 if dice.random() < 0.1 else None
        ticket = BatchTicket(rows, [dice.randint(1, 60) for _ in rows], str(n), deadline)
        answer = asyncio.ensure_future(thread.answer(ticket))
        if dice.random() < 0.15:  # the client leaves
            await asyncio.sleep(dice.random() * 0.01)
            answer.cancel()
        (found,) = await asyncio.gather(answer, return_exceptions=True)
        if isinstance(found, DeadlineError):
            assert deadline is not None
        elif isinstance(found, RequestError):
            assert (found.status, min(rows)) == (500, -1)
        elif not isinstance(found, asyncio.CancelledError):
            assert found == [2 * row for row in rows]

    async def main():
        thread = thread_of(engine, counts)
        thread.start()
        await asyncio.gather(*(ask(thread, n) for n in range(120)))
        await until(lambda: not thread.num_open)
        await until(lambda: not (thread._open or thread._waiting or thread._inbox_tokens or thread._waiting_tokens))
        await asyncio.to_thread(thread.stop)

    asyncio.run(main())
    assert len(counts.reasons) == 120
    assert all(num_rows == 1 or num_tokens <= 50 for num_rows, num_tokens in counts.batches)


def test_what_waits_when_the_server_ends_is_told():
    async def main():
        engine = Engine()
        thread = thread_of(engine, Counts())
        thread.start()
        tickets = [BatchTicket([1] * 50, [50] * 50, "x") for _ in range(3)]
        answers = [asyncio.ensure_future(thread.answer(ticket)) for ticket in tickets]
        await asyncio.sleep(0)
        await asyncio.to_thread(thread.stop)
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert {problem.status for problem in found} == {503}
        assert thread.num_open == 0
        assert len(engine.rows) < 150

    asyncio.run(main())


def test_a_request_whose_client_has_left_is_not_run_further():
    async def main():
        engine = Engine()
        thread = thread_of(engine, Counts())
        thread.start()
        answer = asyncio.ensure_future(thread.answer(BatchTicket([1] * 500, [50] * 500, "x")))
        await until(lambda: engine.rows)
        answer.cancel()
        await until(lambda: not thread.num_open)
        assert len(engine.rows) < 450
        await asyncio.to_thread(thread.stop)

    asyncio.run(main())


def test_without_a_queue_an_idle_engine_takes_one_batch_and_a_busy_one_nothing():
    async def main():
        thread = thread_of(Engine(), Counts(), num_rows=2, max_open=0, max_queue_tokens=0)
        thread.check_room()
        thread._thread.is_alive = lambda: True  # not yet started, so that what is taken stays
        with pytest.raises(RequestError, match="has 3 rows"):
            thread.submit(BatchTicket([1] * 3, [1] * 3, "x"))
        taken = BatchTicket([1, 2], [1, 1], "x")
        thread.submit(taken)
        for refused in (thread.check_room, lambda: thread.submit(BatchTicket([1], [1], "x"))):
            with pytest.raises(QueueFullError):
                refused()
        del thread._thread.is_alive
        thread.start()
        assert await taken.done == [2, 4]
        await until(lambda: not thread.num_open)
        assert await thread.answer(BatchTicket([5], [1], "x")) == [10]
        await asyncio.to_thread(thread.stop)

    asyncio.run(main())


@pytest.mark.parametrize("is_lazy", [False, True])
def test_what_a_request_is_at_fault_for_is_its_own_and_no_failure_of_the_engine(is_lazy):
    def results(rows):
        for row in rows:
            if row < 0:
                raise MisuseError("row is negative; it must be at least 0.")
            yield row

    engine = Engine()
    engine.run = results if is_lazy else lambda rows: list(results(rows))

    async def main():
        thread = thread_of(engine, Counts())
        thread.start()
        for _ in range(FAILURES + 1):
            asked = [thread.answer(BatchTicket(rows, [1] * len(rows), "x")) for rows in ([1, 2], [3, -1], [4])]
            one, wrong, other = await asyncio.gather(*asked, return_exceptions=True)
            assert (one, other) == ([1, 2], [4])
            assert (wrong.status, str(wrong)) == (400, "row is negative; it must be at least 0.")
        for _ in range(FAILURES + 1):
            (wrong,) = await asyncio.gather(thread.answer(BatchTicket([-1], [1], "x")), return_exceptions=True)
            assert wrong.status == 400
        assert thread.problem() is None
        await asyncio.to_thread(thread.stop)

    asyncio.run(main())


def test_texts_whose_numbers_are_not_finite_end_their_requests_alone_and_leave_the_engine_well():
    def run(rows):
        if min(rows) < 0:
            raise NotFiniteError("toy computes NaN")
        return rows

    async def main():
        thread = BatchThread(
            "toy", run, Counts(), max_batch_tokens=50, limits=Limits(num_rows=1, max_open=9, max_queue_tokens=99)
        )
        thread.start()
        for _ in range(FAILURES + 1):
            (wrong,) = await asyncio.gather(thread.answer(BatchTicket([-1], [1], "x")), return_exceptions=True)
            assert wrong.status == 500
        assert thread.problem() is None
        await asyncio.to_thread(thread.stop)

    asyncio.run(main())
