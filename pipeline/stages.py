"""Times the stages of recipes: each command in a new process, two Pistons in turns, A B A B."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from piston.bench.job import Job, Side
from piston.bench.measure import SEED
from piston.bench.metrics import of_stage, summary
from piston.bench.report import MeasuredStage, Options, StageRun, System
from piston.core.console import Progress
from piston.core.errors import EngineError, Error
from piston.pipeline.child import Outcome, run_verb

# Takes words, directory and Python; returns the outcome and the CPU seconds of all cores.
Runner = Callable[[Sequence[str], Path, str], tuple[Outcome, float]]


def run_stage(words: Sequence[str], directory: Path, python: str) -> tuple[Outcome, float]:
    """Run `piston WORDS` with that Python; raises Error with its message if it fails."""
    before = _children_cpu()
    outcome = run_verb(words, directory, True, python)
    return outcome, _children_cpu() - before


def _children_cpu() -> float:
    """CPU seconds of all child processes that have been waited for."""
    import resource  # Windows has none

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure_stages(
    sides: Sequence[Side],
    jobs: Sequence[Job],
    options: Options,
    progress: Progress,
    scratch: Path,
    runner: Runner = run_stage,
) -> list[System]:
    """Run every job `warmup` + `repeats` times on every side, after the job whose output it reads.

    Each side reads its own output of the first round; output of later rounds is deleted at once. `scratch` is an
    empty directory with room for the outputs of one round of every side, and one more.

    Raises:
        Error: a command failed, or wrote nothing.
    """
    found: dict[tuple[str, str], list[StageRun]] = {(side.name, job.name): [] for side in sides for job in jobs}
    rounds, done, name = options.warmup + options.repeats, 0, "running stages"
    with progress.phase(name):
        for round_index in range(rounds):
            for job in jobs:
                for side in sides:
                    progress.step(name, done, rounds * len(found))
                    run = _timed(side, job, scratch / side.name, runner)
                    done += 1
                    if round_index >= options.warmup:
                        found[side.name, job.name].append(run)
    return [_system(side, jobs, [found[side.name, job.name] for job in jobs]) for side in sides]


def _timed(side: Side, job: Job, place: Path, runner: Runner) -> StageRun:
    kept, read = _kept(place, job.name), None if job.reads is None else _written(_kept(place, job.reads))
    work = place / "again" if kept.exists() else kept
    work.mkdir(parents=True)
    outcome, spent = runner(job.words(work, read), job.directory, side.python)
    if outcome.status != 0:
        raise Error(f"`piston {job.verb}` failed: {outcome.error or f'exit status {outcome.status}'}")
    num_bytes = sum(path.stat().st_size for path in _written(work).rglob("*") if path.is_file())
    if work != kept:
        shutil.rmtree(work)
    return StageRun(
        seconds=round(outcome.seconds, 6),
        cpu_seconds=round(spent, 6),
        peak_bytes=outcome.peak_bytes,
        written_bytes=num_bytes,
    )


def _kept(place: Path, name: str) -> Path:
    return place / name.replace(" ", "-").replace(":", "-").replace(",", "-")


def _written(work: Path) -> Path:
    """The one directory that a stage wrote."""
    found = sorted(work.iterdir()) if work.is_dir() else []
    if len(found) != 1:
        raise EngineError(f"A stage should write one directory below {work}, but wrote {len(found)}.")
    return found[0]


def _system(side: Side, jobs: Sequence[Job], runs: Sequence[Sequence[StageRun]]) -> System:
    return System(
        name=side.name,
        kind="piston",
        path=side.python,
        digest=None,
        versions={},
        starts=(),
        metrics={},
        stages=tuple(
            MeasuredStage(
                name=job.name,
                verb=job.verb,
                options=job.options,
                runs=tuple(own),
                metrics=summary([of_stage(run) for run in own], SEED),
            )
            for job, own in zip(jobs, runs, strict=True)
        ),
    )
