"""The measurement: start-ups in new processes, then every system loaded once and run in turns, A B A B."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from piston.bench.child import Child, Contender, Ran
from piston.bench.metrics import of_run, of_start, summary
from piston.bench.neighbours import neighbours
from piston.bench.report import Measured, Options, Run, Start, System
from piston.bench.workload import Setting, Work
from piston.core.console import Progress

SEED = 0  # of the bootstrap
TIMEOUT = 600.0  # seconds one call may take
_PLACES = 6  # decimals of a second that are kept: microseconds
Clock = Callable[[], float]
Opener = Callable[[Contender, dict[str, Any]], Child]


def open_child(contender: Contender, options: dict[str, Any]) -> Child:
    """A new process that has loaded the system."""
    return Child(contender, options, timeout=TIMEOUT)


def measure(
    contenders: Sequence[Contender],
    works: Sequence[Work],
    options: Options,
    progress: Progress,
    opener: Opener = open_child,
    clock: Clock = time.perf_counter,
) -> list[System]:
    """Measure every system at every setting, all with the same prompts.

    Times within a call are the system's own; `clock` times new processes from outside.

    Raises:
        EngineError: a system fails, or does not generate the requested tokens.
    """
    timed = partial(_start, opener=opener, clock=clock)
    starts = _starts(contenders, works[0], options, progress, timed)
    runs, versions = _runs(contenders, works, options, progress, opener)
    return [
        System(
            name=contender.name,
            kind=contender.kind,
            path=contender.path,
            digest=contender.digest,
            versions=versions[index],
            starts=tuple(starts[index]),
            metrics=summary([of_start(start) for start in starts[index]], SEED),
            settings=tuple(_measured(work.setting, own[index]) for work, own in zip(works, runs, strict=True)),
            size_bytes=size_of(Path(contender.path)),
        )
        for index, contender in enumerate(contenders)
    ]


def _starts(
    contenders: Sequence[Contender], work: Work, options: Options, progress: Progress, timed: Callable[..., Start]
) -> list[list[Start]]:
    """Time new processes in turns. The first of each warms the page cache and does not count."""
    found: list[list[Start]] = [[] for _ in contenders]
    if not options.starts:
        return found
    limits, name = _limits([work], options), "starting processes"
    total = (options.starts + 1) * len(contenders)
    with progress.phase(name):
        for index in range(total):
            round_index, which = divmod(index, len(contenders))
            progress.step(name, index, total)
            start = timed(contenders[which], work, round_index, limits)
            if round_index:
                found[which].append(start)
    return found


def _start(
    contender: Contender, work: Work, round_index: int, limits: dict[str, Any], opener: Opener, clock: Clock
) -> Start:
    begun = clock()
    with opener(contender, limits) as child:
        child.run(work.rows(round_index), 1)
        first_token = clock() - begun
        peak = child.run(work.rows(round_index + 1), work.setting.gen_len, work.setting.num_beams).peak_bytes
        return Start(
            first_token=round(first_token, _PLACES),
            imports=round(child.import_s, _PLACES),
            load=round(child.load_s, _PLACES),
            peak_bytes=peak,
        )


def _runs(
    contenders: Sequence[Contender], works: Sequence[Work], options: Options, progress: Progress, opener: Opener
) -> tuple[list[list[list[Run]]], list[dict[str, str]]]:
    """Runs by setting and system, and the systems' versions."""
    limits, name = _limits(works, options), "running"
    rounds = options.warmup + options.repeats
    total, done = len(works) * rounds * len(contenders), 0
    found: list[list[list[Run]]] = [[[] for _ in contenders] for _ in works]
    with ExitStack() as stack:
        with progress.phase("loading"):
            children = [stack.enter_context(opener(contender, limits)) for contender in contenders]
        with progress.phase(name):
            for round_index, (work, own) in _turns(works, found, rounds):
                prompts = work.rows(round_index)
                with neighbours(work.setting.neighbours):
                    for child, runs in zip(children, own, strict=True):
                        progress.step(name, done, total)
                        ran, done = child.run(prompts, work.setting.gen_len, work.setting.num_beams), done + 1
                        if round_index >= options.warmup:
                            runs.append(_run(ran, len(prompts[0])))
        return found, [child.versions for child in children]


def _turns(
    works: Sequence[Work], found: Sequence[list[list[Run]]], rounds: int
) -> Iterator[tuple[int, tuple[Work, list[list[Run]]]]]:
    """The rounds of each work in order; works that differ only in their neighbours take turns."""
    pairs = list(zip(works, found, strict=True))
    for _, alike in groupby(pairs, key=lambda pair: replace(pair[0].setting, neighbours=0)):
        group = list(alike)
        for round_index in range(rounds):
            for pair in group:
                yield round_index, pair


def _limits(works: Sequence[Work], options: Options) -> dict[str, Any]:
    """The sizes that every system is loaded for."""
    return {
        "threads": options.threads,
        # Of speech as the bundle was built: all decoders of one model hold as much.
        "max_length": None if works[0].audios else max(work.setting.num_positions for work in works),
        "max_batch": max(work.setting.num_slots for work in works),
    }


def _run(ran: Ran, prompt_len: int) -> Run:
    times = tuple(round(seconds, _PLACES) for seconds in ran.times)
    return Run(prompt_len=prompt_len, times=times, parts={name: round(v, 9) for name, v in ran.parts.items()})


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of all files of a directory; None if the path does not exist."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) or None


def _measured(setting: Setting, runs: Sequence[Run]) -> Measured:
    return Measured(setting=setting, runs=tuple(runs), metrics=summary([of_run(run, setting) for run in runs], SEED))
