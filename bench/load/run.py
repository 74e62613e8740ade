"""One run: sends the requests of a setting in a closed or an open loop, and judges whether it is a measurement."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from piston.bench.load.client import Endpoint, Parsed, Received, ask, check_usable, parse
from piston.bench.load.setting import LoadRequest, LoadSetting

TIMEOUT = 600.0  # seconds that one answer may take
# Growth of the requests in flight from the second quarter to the last that counts as a queue that grows. Simulated with
# 64 requests of equal cost on 8 rows (M/D/8): a load of 70 % gives that in 6 % of runs, 150 % in 80 %, 200 % in 99 %.
GROWTH, SLACK = 1.3, 3.0
_PLACES = 6  # decimals of a second that are kept: microseconds
Tick = Callable[[int], None]  # called with the number of answers so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """One request: the second of the run at which it was due, and its answer's times from then on."""

    at: float
    prompt_len: int
    times: tuple[float, ...]  # of each piece of text; none where it was refused
    num_tokens: int  # as the server counts
    num_cached: int  # of the prompt, as the server says
    is_long: bool = False  # the one prompt that disturbs the others
    problem: str | None = None  # why it was refused


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """One run of a setting."""

    sent: tuple[Sent, ...]
    seconds: float  # from the first request to the last answer
    client_seconds: float  # processor time of the client itself
    engine_seconds: float | None = None  # what the engine alone takes for the same tokens
    invalid: str | None = None  # why the latencies of this run are not those of a server that keeps up


def run_load(
    endpoint: Endpoint, setting: LoadSetting, requests: Sequence[LoadRequest], system: str, tick: Tick
) -> LoadRun:
    """Send all requests and wait for the answers.

    Raises:
        EngineError: an answer fails for another reason than too much load, or has a wrong number of tokens.
    """
    drive = partial(_closed, concurrency=setting.concurrency) if setting.concurrency is not None else _open
    cpu = time.process_time()
    begun, received = asyncio.run(drive(endpoint, requests, _Ticker(tick)))
    cpu = time.process_time() - cpu
    parsed = [(at, parse(item)) for at, item in received]
    for request, (_, answer) in zip(requests, parsed, strict=True):
        check_usable(answer, request, system)
    sent = tuple(_sent(request, at, answer, begun) for request, (at, answer) in zip(requests, parsed, strict=True))
    ends = [item.at + item.times[-1] for item in sent if item.times]
    return LoadRun(
        sent=sent,
        seconds=round(max(ends, default=0.0), _PLACES),
        client_seconds=round(cpu, _PLACES),
        invalid=why_invalid(sent, setting),
    )


def why_invalid(sent: Sequence[Sent], setting: LoadSetting) -> str | None:
    """Why a run does not show the latency of a server that keeps up; None where it does.

    In an open loop the requests in flight are counted at each arrival. Where they are GROWTH times as many in the last
    quarter of arrivals as in the second, and SLACK more, the queue grows: the latency is that of the run's length.
    """
    num_refused = sum(item.problem is not None for item in sent)
    if num_refused:
        return f"{num_refused} of {len(sent)} requests were refused"
    if setting.rate is None:
        return None
    starts = np.asarray([item.at for item in sent])
    ends = starts + np.asarray([item.times[-1] for item in sent])
    in_flight = np.asarray([((starts <= start) & (ends > start)).sum() for start in np.sort(starts)])
    quarters = np.array_split(in_flight, 4)
    before, after = float(quarters[1].mean()), float(quarters[3].mean())
    if after > GROWTH * before + SLACK:
        return f"the queue grew from {before:.1f} to {after:.1f} requests"
    return None


class _Ticker:
    def __init__(self, tick: Tick) -> None:
        self._tick, self._done = tick, 0

    def __call__(self) -> None:
        self._done += 1
        self._tick(self._done)


Answers = tuple[float, list[tuple[float, Received]]]  # when the run began, and each answer with its start


async def _closed(
    endpoint: Endpoint, requests: Sequence[LoadRequest], tick: Callable[[], None], *, concurrency: int
) -> Answers:
    """The next request starts when one ends; a long prompt comes in addition, once half have been started."""
    queue = [index for index, request in enumerate(requests) if not request.is_long]
    others = [index for index, request in enumerate(requests) if request.is_long]
    queue.reverse()
    half = len(queue) // 2
    answers: list[tuple[float, Received] | None] = [None] * len(requests)
    extra: list[asyncio.Task[None]] = []

    async def one(index: int) -> None:
        start = time.perf_counter()
        answers[index] = start, await ask(endpoint, requests[index], TIMEOUT)
        tick()

    async def client() -> None:
        while queue:
            if len(queue) <= half and others:
                extra.append(asyncio.create_task(one(others.pop())))
            await one(queue.pop())

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(concurrency)))
    await asyncio.gather(*extra)
    return begun, [answer for answer in answers if answer is not None]


async def _open(endpoint: Endpoint, requests: Sequence[LoadRequest], tick: Callable[[], None]) -> Answers:
    """Each request starts when it is due, whatever has become of the others; times count from when it was due."""
    begun = time.perf_counter()

    async def one(request: LoadRequest) -> tuple[float, Received]:
        start = begun + request.due
        await asyncio.sleep(start - time.perf_counter())
        answer = await ask(endpoint, request, TIMEOUT)
        tick()
        return start, answer

    return begun, list(await asyncio.gather(*map(one, requests)))


def _sent(request: LoadRequest, start: float, answer: Parsed, begun: float) -> Sent:
    return Sent(
        at=round(start - begun, _PLACES),
        prompt_len=len(request.prompt),
        times=tuple(round(at - start, _PLACES) for at in answer.times),
        num_tokens=answer.num_tokens,
        num_cached=answer.num_cached,
        is_long=request.is_long,
        problem=answer.problem,
    )
