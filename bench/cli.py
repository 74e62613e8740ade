"""`piston bench BUNDLE`: latency, speed and memory, alone, next to other systems, or against a baseline."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from piston.bench import encoders as of_encoders
from piston.bench import modules as of_modules
from piston.bench.baseline import Reference, read_reference
from piston.bench.child import Contender
from piston.bench.encoders import Bench
from piston.bench.fingerprint import take_fingerprint
from piston.bench.gate import FIGURES, Gate, check_measured, judge, strictest
from piston.bench.load import cli as of_servers
from piston.bench.measure import measure
from piston.bench.metrics import LOAD_METRICS, METRICS
from piston.bench.neighbours import neighbours
from piston.bench.profile import profile
from piston.bench.publish import add_output_arguments, check_outputs, publish
from piston.bench.ratios import ratios_of
from piston.bench.report import Options, Report
from piston.bench.systems import KINDS, SERVED_KINDS, bundle_contender, named_apart, read_against
from piston.bench.workload import Work
from piston.bench.works import TASKS, check_positions, check_task, is_measured, numbers, works_of
from piston.core.bundle.manifest import TEXT_GENERATION, Manifest
from piston.core.console import Progress
from piston.core.errors import MisuseError
from piston.core.gates import add_gate_arguments, gates_of
from piston.core.machine import num_cores
from piston.runtime.backends.session import check_threads
from piston.runtime.bundle import Bundle
from piston.runtime.tasks.module import TASK as MODULE

REPEATS, WARMUP = 10, 2
ENCODERS = Bench(of_encoders.METRICS, of_encoders.measure_texts)
MODULES = Bench(of_modules.METRICS, of_modules.measure_runs)
_EPILOG = f"""rivals: --against KIND:PATH, where KIND is {", ".join(KINDS)};
--env KIND=DIR names the virtual environment (or Python) that has the rival. --rivals FILE takes all that
scripts/prepare_rivals.py made.

recipes: in place of a bundle, RECIPE.toml of `piston make`, one or several: export, calibrate and each target's build
run in new processes, 6 times after one warm-up, and their time and memory are reported.

servers: --serve BUNDLE or URL sends requests over HTTP, --concurrency of them at a time or --rate a second, with
--prompt-len and --gen-len fixed (128) or drawn (64-256). Servers of --against and --rivals take turns with it:
{", ".join(SERVED_KINDS)}, or url:http://HOST:PORT. OPENAI_API_KEY is sent where it is set. Gates are
{", ".join(LOAD_METRICS)}.

gates: --require 'tpot.p50<=105%' (of the baseline's, if the change is significant), 'ttft.p95<=200ms', 'peak<=400MB';
the figures are {", ".join(METRICS)},
with .p50, .p90, .p95 or .p99. A baseline is a file of --json, or a bundle. A bundle is measured in turns with this one,
so changes of the machine's speed cancel out.
Of recipes: 'export.seconds<=110%', 'calibrate.peak<=105%', 'build.cpu<=110%', 'build.written<=101%'; in place of a
bundle the baseline is a virtual environment with another Piston, which runs them in turns.
Bundles of encoders have --prompts (texts), --repeats, --warmup and --threads: 'latency<=5ms', 'texts_per_second>=100',
'tokens_per_second>=10000', 'load<=1s', 'peak<=400MB'.
Bundles of encoder-decoders are measured as language models are: --prompt-len is that of the source, 'encode<=20ms' the
encoder's time. Bundles of speech have --audio-len (made sound, --gen-len tokens for each window) or --prompts (audio
files, transcribed): 'rtf<=0.2', 'first_segment<=1s', 'decode>=50tokens/s', 'encode<=500ms'.
Bundles of modules the same as encoders, with --prompts FILE.npz (arrays in place of the example): 'latency<=5ms',
'runs_per_second>=100'.
A gate that is not met exits with 1."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything derived from the options, before anything is loaded."""

    contenders: tuple[Contender, ...]
    works: tuple[Work, ...]
    options: Options
    gates: tuple[Gate, ...]
    reference: Reference | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `piston bench`."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "bundle", metavar="BUNDLE", nargs="*", type=Path, help="the directory `piston build` wrote, or recipes (*.toml)"
    )
    parser.add_argument("--checkpoint", metavar="PATH", help="for recipes: path of the checkpoint on this machine")
    parser.add_argument("--target", help="which engine of the bundle")
    for name, default, text in (
        ("--batch", "1", "rows generated together"),
        ("--num-beams", "1", "beams of a search for each row"),
        ("--prompt-len", None, "tokens of each prompt"),
        ("--gen-len", "64", "tokens to generate"),
        ("--neighbours", "0", "busy processes next to the system, one thread each"),
    ):
        is_length = name.endswith("-len")  # a server takes ranges too
        parser.add_argument(
            name,
            type=str if is_length else numbers,
            default=default,
            metavar="N,N...",
            help=f"{text} (default: {default or '128,512'})",
        )
    parser.add_argument(
        "--audio-len", metavar="S,S...", help="of speech: seconds of made sound, to the millisecond (default: 30)"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        help="real prompts, one a line or as .jsonl, .json, .csv, .tsv; of speech an audio file or a list of them",
    )
    parser.add_argument("--repeats", type=int, metavar="N", help="measured runs (default: 10; for recipes 6)")
    parser.add_argument(
        "--warmup", type=int, metavar="N", help="runs before them that do not count (default: 2; for recipes 1)"
    )
    parser.add_argument("--starts", type=int, default=3, metavar="N", help="new processes to time (default: 3)")
    parser.add_argument(
        "--threads", type=int, metavar="N", help="threads of every system (default: the physical cores)"
    )
    parser.add_argument(
        "--against", action="append", default=[], metavar="KIND:PATH", help="another system to compare with; repeatable"
    )
    parser.add_argument(
        "--env", action="append", default=[], metavar="KIND=DIR", help="Python environment of a kind of system"
    )
    parser.add_argument("--rivals", metavar="FILE", type=Path, help="rivals.json of scripts/prepare_rivals.py")
    parser.add_argument("--baseline", metavar="PATH", type=Path, help="an earlier --json file, or a bundle")
    of_servers.add_load_arguments(parser)
    add_gate_arguments(parser, "'tpot.p50<=105%'", "--fail-on")
    parser.add_argument(
        "--alpha", type=float, default=0.05, metavar="P", help="probability of a false alarm, all gates together"
    )
    parser.add_argument(
        "--profile", action="store_true", help="profile a step by operator and compare it with the machine's limits"
    )
    add_output_arguments(parser)
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, judge. Wrong options are refused before a system is started."""
    if arguments.serve is not None:
        return of_servers.run(arguments)
    of_servers.check_unserved(arguments)
    if not arguments.bundle:
        raise MisuseError("Name a bundle or recipes (*.toml), or a server with --serve.")
    (path,) = arguments.bundle
    task = Manifest.read(path).task
    if not is_measured(task):
        raise MisuseError(f"{path} is for {task}, which is not measured.")
    check_arguments(arguments, task)
    if task not in TASKS:
        return of_encoders.run(arguments, MODULES if task == MODULE else ENCODERS)
    with tempfile.TemporaryDirectory() as scratch:
        return _measured(arguments, Path(scratch))


def _measured(arguments: argparse.Namespace, scratch: Path) -> int:
    """Of a bundle that is measured at settings, next to other systems."""
    plan = _plan(arguments, scratch)
    machine = take_fingerprint(plan.options.threads)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    systems = tuple(measure(plan.contenders, plan.works, plan.options, Progress(quiet=arguments.quiet)))
    report = Report(
        machine=machine,
        options=plan.options,
        systems=systems,
        ratios=ratios_of(systems),
        piston=version("piston"),
        date=date,
    )
    if plan.reference is not None:
        report = replace(report, baseline=plan.reference.baseline(report))
    if arguments.profile:
        bundle = Bundle.open(arguments.bundle[0])
        with neighbours(plan.works[0].setting.neighbours):
            progress = Progress(quiet=arguments.quiet)
            found = profile(bundle, arguments.target, plan.works[0], plan.options.threads, progress)
        report = replace(report, profile=found)
    gates = judge(plan.gates, report, plan.reference, arguments.alpha)
    return publish(replace(report, gates=gates), arguments)


def _plan(arguments: argparse.Namespace, scratch: Path) -> Plan:
    options = _options(arguments)
    gates = gates_of(arguments, FIGURES, "--fail-on")
    (path,) = arguments.bundle
    bundle = Bundle.open(path)
    task = bundle.manifest.task
    works = works_of(arguments, bundle, scratch)
    contenders = [
        bundle_contender(path, arguments.target),
        *read_against(arguments.against, arguments.env, arguments.rivals),
    ]
    reference = None
    if arguments.baseline is not None:
        if not any(gate.change_of is not None for gate in gates):
            raise MisuseError("--baseline needs a gate; give one such as --require 'tpot<=105%', or use --against.")
        reference = read_reference(arguments.baseline)
        if reference.side is not None:
            raise MisuseError(
                f"--baseline {arguments.baseline} is an environment, which only recipes can use; give a bundle."
            )
        if reference.contender is not None:
            contenders.append(reference.contender)
        reference.check(options, [work.setting for work in works])
    _check_systems(contenders[1:], task, works)
    check_positions(contenders, [work.setting for work in works])
    _check_gates(gates, options, works, reference, arguments.alpha)
    return Plan(tuple(named_apart(contenders)), tuple(works), options, gates, reference)


def _check_systems(others: Sequence[Contender], task: str, works: Sequence[Work]) -> None:
    """Refuse systems that do not do the same work."""
    is_search = any(work.setting.num_beams > 1 for work in works)
    for other in others:
        if other.kind == "piston":
            Manifest.read(Path(other.path)).require_task(task, other.path)
        elif task != TEXT_GENERATION or is_search:
            what = "searches" if task == TEXT_GENERATION else task
            raise MisuseError(f"{other.name} is measured on greedy answers of language models; of {what} only bundles.")


def _options(arguments: argparse.Namespace) -> Options:
    return Options(
        repeats=REPEATS if arguments.repeats is None else arguments.repeats,
        warmup=WARMUP if arguments.warmup is None else arguments.warmup,
        starts=arguments.starts,
        threads=num_cores() if arguments.threads is None else arguments.threads,
    )


def check_arguments(arguments: argparse.Namespace, task: str) -> None:
    """Refuse options that are wrong for every bundle of a task; raises MisuseError."""
    check_task(arguments, task)
    options = _options(arguments)
    for name, value, least in (
        ("--repeats", options.repeats, 1),
        ("--warmup", options.warmup, 0),
        ("--starts", options.starts, 0),
        ("--threads", options.threads, 1),
    ):
        if value < least:
            raise MisuseError(f"{name} is {value}; it must be at least {least}.")
    check_threads(options.threads)
    if arguments.checkpoint is not None:
        raise MisuseError("--checkpoint is for recipes; leave it out for a bundle.")
    if not 0 < arguments.alpha < 1:
        raise MisuseError(f"--alpha is {arguments.alpha}; it must be a probability between 0 and 1.")
    check_outputs(arguments)


def _check_gates(
    gates: Sequence[Gate], options: Options, works: Sequence[Work], reference: Reference | None, alpha: float
) -> None:
    settings = [work.setting for work in works]
    level = strictest(gates, lambda gate: 1 if gate.metric.known.is_of_start else len(settings), alpha)
    for gate in gates:
        if gate.change_of is not None and reference is None:
            raise MisuseError(f"--require {gate.text!r} bounds a change; give --baseline, a file or a bundle.")
        check_measured(gate, options, settings, level)
        if gate.change_of is not None and reference is not None and (there := reference.samples(options)) is not None:
            try:
                check_measured(gate, there, settings, level)
            except MisuseError as problem:
                raise MisuseError(f"--baseline {reference.path} has too few runs. {problem}") from None
