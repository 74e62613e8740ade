"""The stages of recipes, timed: each command in a process of its own, two Pistons in turns, A B A B."""

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

# From the words, where they run and the Python: what came of it, and the seconds of all cores.
Runner = Callable[[Sequence[str], Path, str], tuple[Outcome, float]]


def run_stage(words: Sequence[str], directory: Path, python: str) -> tuple[Outcome, float]:
    """Run `piston WORDS` of that Python; raises Error in its own words where it fails."""
    before = _children_cpu()
    outcome = run_verb(words, directory, True, python)
    return outcome, _children_cpu() - before


def _children_cpu() -> float:
    """Seconds that all cores together spent on processes this one started and waited for."""
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
    """Run every job `warmup` + `repeats` times on every side; a job comes after the one it reads.

    Each side reads what it wrote itself in the first round; what later rounds write is deleted at once. `scratch` is an
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
        raise EngineError(f"A stage was to write one directory below {work}, and wrote {len(found)}.")
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
