"""`piston bench RECIPE...`: time and memory of the stages that make a bundle."""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from piston.bench.baseline import Reference, read_reference
from piston.bench.fingerprint import take_fingerprint
from piston.bench.gate import FIGURES, Gate, check_stages, judge, strictest
from piston.bench.job import Job, Side
from piston.bench.publish import check_outputs, publish
from piston.bench.report import Options, Report
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.core.gates import gates_of
from piston.core.machine import num_cores
from piston.pipeline.stage_recipes import jobs_of
from piston.pipeline.stages import measure_stages

SUFFIX = ".toml"
REPEATS, WARMUP = 6, 1  # stages take minutes
# Options that apply only to a bundle.
_OF_BUNDLES = (
    "target",
    "batch",
    "prompt_len",
    "gen_len",
    "neighbours",
    "prompts",
    "starts",
    "threads",
    "against",
    "env",
    "rivals",
    "concurrency",
    "rate",
    "requests",
    "shared_prefix",
    "long_prompt",
    "slo",
    "engine",
)


def is_of_recipes(paths: Sequence[Path]) -> bool:
    """Whether the command names recipes, not a bundle; raises MisuseError for a mixture or several bundles."""
    recipes = [path.suffix == SUFFIX for path in paths]
    if not all(recipes) and len(paths) > 1:
        raise MisuseError("Name one bundle, or recipes (*.toml); a bundle is compared by --against piston:OTHER.")
    return bool(recipes) and all(recipes)


def run_recipes(arguments: argparse.Namespace, defaults: argparse.Namespace) -> int:
    """Measure, print, judge. Wrong options are refused before a stage runs."""
    _check(arguments, defaults)
    gates = gates_of(arguments, FIGURES, "--fail-on")
    options = Options(
        repeats=REPEATS if arguments.repeats is None else arguments.repeats,
        warmup=WARMUP if arguments.warmup is None else arguments.warmup,
        starts=0,
        threads=num_cores(),
    )
    jobs = jobs_of(arguments.bundle, arguments.checkpoint)
    reference = _reference(arguments, gates)
    _check_gates(gates, options, jobs, reference, arguments.alpha)
    report = measured(jobs, options, Progress(quiet=arguments.quiet), reference)
    return publish(replace(report, gates=judge(gates, report, reference, arguments.alpha)), arguments)


def measured(jobs: Sequence[Job], options: Options, progress: Progress, reference: Reference | None = None) -> Report:
    """Run the stages of this Piston, in turns with those of a baseline environment if there is one."""
    machine, date = take_fingerprint(options.threads), datetime.now(UTC).isoformat(timespec="seconds")
    sides = [Side(name="piston", python=sys.executable)]
    if reference is not None and reference.side is not None:
        sides.append(reference.side)
    with tempfile.TemporaryDirectory(prefix="piston-bench-") as scratch:
        systems = tuple(measure_stages(sides, jobs, options, progress, Path(scratch)))
    report = Report(machine=machine, options=options, systems=systems, piston=version("piston"), date=date)
    return report if reference is None else replace(report, baseline=reference.baseline(report))


def _check(arguments: argparse.Namespace, defaults: argparse.Namespace) -> None:
    for name in (*_OF_BUNDLES, "profile"):
        if getattr(arguments, name) != getattr(defaults, name):
            raise MisuseError(f"--{name.replace('_', '-')} applies to a bundle, not to recipes; leave it out.")
    for name, value, least in (("--repeats", arguments.repeats, 1), ("--warmup", arguments.warmup, 0)):
        if value is not None and value < least:
            raise MisuseError(f"{name} is {value}; it must be at least {least}.")
    if not 0 < arguments.alpha < 1:
        raise MisuseError(f"--alpha is {arguments.alpha}; it must be a probability between 0 and 1.")
    check_outputs(arguments)


def _reference(arguments: argparse.Namespace, gates: Sequence[Gate]) -> Reference | None:
    if arguments.baseline is None:
        return None
    if not any(gate.change_of is not None for gate in gates):
        raise MisuseError("--baseline needs a gate; give one such as --require 'calibrate.seconds<=110%'.")
    reference = read_reference(arguments.baseline)
    if reference.contender is not None:
        raise MisuseError(
            f"--baseline {arguments.baseline} is a bundle; for recipes give a --json file, or a virtual "
            "environment with another Piston."
        )
    return reference


def _check_gates(
    gates: Sequence[Gate], options: Options, jobs: Sequence[Job], reference: Reference | None, alpha: float
) -> None:
    verbs = list(dict.fromkeys(job.verb for job in jobs))
    level = strictest(gates, lambda gate: sum(job.verb == gate.metric.verb for job in jobs), alpha)
    if reference is not None:
        reference.check_stages(jobs)
    for gate in gates:
        if gate.change_of is not None and reference is None:
            raise MisuseError(f"--require {gate.text!r} bounds a change; give --baseline, a file or an environment.")
        check_stages(gate, options.repeats, verbs, level)
        if gate.change_of is not None and reference is not None and (there := reference.samples(options)) is not None:
            try:
                check_stages(gate, there.repeats, verbs, level)
            except MisuseError as problem:
                raise MisuseError(f"--baseline {reference.path} has too few runs. {problem}") from None
