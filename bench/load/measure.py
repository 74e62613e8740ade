"""The measurement under load: every system's server is started once, then all take turns, A B A B."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from piston.bench.child import Child, Contender
from piston.bench.load.client import Endpoint
from piston.bench.load.run import LoadRun, run_load
from piston.bench.load.servers import LoadedServer, echo_contender
from piston.bench.load.setting import LoadRequest, LoadSetting, LoadWork
from piston.bench.measure import SEED, open_child, size_of
from piston.bench.metrics import of_load, summary
from piston.bench.neighbours import neighbours
from piston.bench.report import MeasuredLoad, Options, System
from piston.core.console import Progress


class Served(Protocol):
    """A server that answers at its endpoint."""

    endpoint: Endpoint


Opener = Callable[[Contender, dict[str, Any]], AbstractContextManager[Served]]


@dataclass(slots=True)
class _Bar:
    """The progress bar over all requests of all runs."""

    progress: Progress
    total: int
    done: int = 0

    def advance(self, count: int) -> None:
        """Redraw for so many answers of the present run."""
        self.progress.step("requests", self.done + count, self.total)


def measure_loads(
    contenders: Sequence[Contender],
    works: Sequence[LoadWork],
    options: Options,
    progress: Progress,
    *,
    engine: bool = False,
    opener: Opener = LoadedServer,
) -> list[System]:
    """Measure every system at every load, all with the same requests.

    Args:
        contenders: systems whose adapters have a server, or URLs.
        works: the loads.
        options: repeats, warm-up runs and threads.
        progress: shows the requests that are done, and the time left.
        engine: the first system is a bundle whose engine is measured alone too, in turns with its server.
        opener: starts a server.

    Raises:
        EngineError: a server cannot be started, or an answer is wrong.
    """
    limits = limits_of(works, options)
    runs: list[list[list[LoadRun]]] = [[[] for _ in contenders] for _ in works]
    rounds = options.warmup + options.repeats
    echoes = [0.0 for _ in works]
    bar = _Bar(progress, sum((rounds * len(contenders) + 1) * len(work.requests(0)) for work in works))
    with ExitStack() as stack:
        with progress.phase("starting servers"):
            servers = [stack.enter_context(opener(contender, limits)) for contender in contenders]
            echo = stack.enter_context(opener(echo_contender(), limits))
            child = stack.enter_context(open_child(contenders[0], limits)) if engine else None
        with progress.phase("requests"):
            for work, own, index in zip(works, runs, range(len(works)), strict=True):
                closed = replace(work, setting=replace(work.setting, rate=None, concurrency=_together(work.setting)))
                echoes[index] = _throughput(_one(echo, closed, work.requests(0), "echo", bar))
                for round_index in range(rounds):
                    requests = work.requests(round_index)
                    with neighbours(work.setting.neighbours):
                        for which, (contender, server) in enumerate(zip(contenders, servers, strict=True)):
                            run = _one(server, work, requests, contender.name, bar)
                            if child is not None and which == 0:
                                run = replace(run, engine_seconds=_alone(child, requests, _together(work.setting)))
                            if round_index >= options.warmup:
                                own[which].append(run)
    return [
        System(
            name=contender.name,
            kind=contender.kind,
            path=contender.path,
            digest=contender.digest,
            versions={} if child is None or which else child.versions,
            starts=(),
            metrics={},
            loads=tuple(
                _measured(work.setting, own[which], limit) for work, own, limit in zip(works, runs, echoes, strict=True)
            ),
            size_bytes=size_of(Path(contender.path)),
        )
        for which, contender in enumerate(contenders)
    ]


def limits_of(works: Sequence[LoadWork], options: Options) -> dict[str, Any]:
    """The sizes that every server is started for: rows for the greatest concurrency, at least 8 in an open loop."""
    return {
        "threads": options.threads,
        "max_length": max(work.setting.num_positions for work in works),
        "max_batch": max(_together(work.setting) for work in works),
    }


def _together(setting: LoadSetting) -> int:
    """Rows of a server for this load."""
    return (setting.concurrency or 8) + bool(setting.long_prompt)


def _one(server: Served, work: LoadWork, requests: Sequence[LoadRequest], name: str, bar: _Bar) -> LoadRun:
    run = run_load(server.endpoint, work.setting, requests, name, bar.advance)
    bar.done += len(requests)
    return run


def _alone(child: Child, requests: Sequence[LoadRequest], batch: int) -> float:
    """Seconds of the engine in this process's own loop, without HTTP: batches of the same prompts."""
    seconds = 0.0
    for start in range(0, len(requests), batch):
        part = requests[start : start + batch]
        seconds += child.run([request.prompt for request in part], part[0].gen_len).times[-1]
    return round(seconds, 6)


def _throughput(run: LoadRun) -> float:
    return round(sum(item.num_tokens for item in run.sent) / run.seconds, 1)


def _measured(setting: LoadSetting, runs: Sequence[LoadRun], limit: float) -> MeasuredLoad:
    metrics = summary([of_load(run, setting) for run in runs], SEED)
    return MeasuredLoad(setting=setting, runs=tuple(runs), metrics=metrics, client_limit=limit)
