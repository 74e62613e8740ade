"""Compares bundles of one model with other systems, from one command, and prints a table of goals met.

    prompt       decode and prefill after 512 tokens        context   decode after 2,000 tokens
    batch        decode of four rows together               starts    new processes: first token, memory
    growth       the bundles alone: prefill and decode by context, load by size
    speculation  prompt lookup against the same bundle's own greedy decode (scripts/bench_speculation.py)
    making       export, calibrate and build: time and memory of the recipes in docs/examples/stages

In the first four all systems are loaded at once and take turns, so that a machine whose speed drifts drifts for all of
them. Each stage writes OUT/STAGE.json (the schema of `piston bench --json`) and OUT/STAGE.html. A stage that is there,
of the same bundles, rivals and at least as many runs, is not measured again: an interrupted run goes on where it
stopped. OUT/table.md is written again each time; `--table` does only that.

`make bench-rivals` makes the bundles and the rivals first. By hand: docs/bench.md says with which commands. The whole
takes an hour on two cores, a quarter of it for the first four stages; leave the machine alone meanwhile. `--quick` runs
every stage once or twice, to see that all systems answer; its figures scatter.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from rivals_table import table_of

from piston.bench.child import Contender
from piston.bench.fingerprint import take_fingerprint
from piston.bench.measure import measure, open_child
from piston.bench.page import page_of
from piston.bench.ratios import ratios_of
from piston.bench.reading import report_from
from piston.bench.report import Options, Report
from piston.bench.systems import bundle_contender, read_against
from piston.bench.workload import Setting, Work
from piston.core.console import Progress
from piston.core.errors import Error, MisuseError
from piston.core.machine import num_cores
from piston.pipeline.stage_cli import measured
from piston.pipeline.stage_recipes import jobs_of
from piston.runtime.bundle import Bundle

HERE = Path(__file__).parent
RECIPES = HERE.parent / "docs/examples/stages"
BUSY = 1.0  # load of the last minute
GROWTH = (128, 512, 1024, 2048, 4000)


class Stage(NamedTuple):
    """Runs of all systems in turns; with `is_own` only the bundles take part."""

    settings: tuple[Setting, ...] = ()
    repeats: int = 1
    starts: int = 0
    is_own: bool = False


STAGES = {
    "prompt": Stage((Setting(1, 512, 64),), repeats=6),
    "context": Stage((Setting(1, 2000, 32),), repeats=4),
    "batch": Stage((Setting(4, 128, 32),), repeats=5),
    "starts": Stage((Setting(1, 128, 8),), repeats=1, starts=5),
    "growth": Stage(tuple(Setting(1, length, 24) for length in GROWTH), repeats=3, starts=3, is_own=True),
    "speculation": Stage(repeats=4, is_own=True),
    "making": Stage(repeats=3, is_own=True),
}


def main() -> None:
    """Run the stages that are missing and write the table."""
    arguments = parsed()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    if not arguments.table:
        try:
            own, rivals = contenders(arguments)
        except Error as problem:
            sys.exit(f"error: {problem}")
        for name in arguments.only:
            try:
                run_stage(name, own, rivals, arguments)
            except (Error, subprocess.CalledProcessError) as problem:
                failed.append(f"error: stage {name}: {problem}")
    text = table_of(arguments.out)
    (arguments.out / "table.md").write_text(text, encoding="utf-8")
    print(text)
    if failed:
        sys.exit("\n".join(failed))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="*", metavar="BUNDLE", help="of one model; named by its directory")
    parser.add_argument("--rivals", type=Path, metavar="FILE", help="rivals.json of scripts/prepare_rivals.py")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help="some stages")
    parser.add_argument("--skip", nargs="+", default=[], metavar="NAME", help="rivals to leave out")
    parser.add_argument("--speculate", metavar="NAME", help="the bundle of that stage (default: the first)")
    parser.add_argument("--checkpoint", metavar="PATH", help="for making (default: the demo checkpoint)")
    parser.add_argument("--quick", action="store_true", help="every stage once or twice")
    parser.add_argument("--again", action="store_true", help="measure stages that are there already")
    parser.add_argument("--table", action="store_true", help="only write the table of what is there")
    arguments = parser.parse_args()
    if not arguments.table and (not arguments.bundles or arguments.rivals is None):
        parser.error("name bundles and --rivals, or --table")
    return arguments


def contenders(arguments: argparse.Namespace) -> tuple[list[Contender], list[Contender]]:
    """Bundles and rivals; the bundles' schemes are written down for the table."""
    own = [bundle_contender(path.absolute()) for path in arguments.bundles]
    if len({item.name for item in own}) < len(own):
        raise MisuseError("Bundles are named by their directories; two have one name.")
    if arguments.speculate is not None and arguments.speculate not in [item.name for item in own]:
        raise MisuseError(f"--speculate {arguments.speculate} is none of {', '.join(item.name for item in own)}.")
    rivals = [item for item in read_against([], [], arguments.rivals) if item.name not in arguments.skip]
    schemes = {item.name: Bundle.open(Path(item.path)).manifest.model.scheme for item in own}
    write_json(arguments.out / "bundles.json", schemes)
    return own, rivals


def run_stage(name: str, own: Sequence[Contender], rivals: Sequence[Contender], arguments: argparse.Namespace) -> None:
    """Measure one stage, unless it is there, and write its files."""
    stage, load = STAGES[name], os.getloadavg()[0]
    repeats, starts = (1, min(stage.starts, 2)) if arguments.quick else (stage.repeats, stage.starts)
    options = Options(repeats=repeats, warmup=1, starts=starts, threads=num_cores())
    path = arguments.out / f"{name}.json"
    taking_part = [*own] if stage.is_own else [*own, *working(rivals, own[0], options, arguments.out / "answered.json")]
    if not arguments.again and is_measured(path, taking_part, options, is_making=name == "making"):
        return
    busy = f"; the machine is busy (load {load:.1f}), so its figures will scatter" if load > BUSY else ""
    print(f"stage {name}{busy}", file=sys.stderr)
    if name == "speculation":
        chosen = next((item for item in own if item.name == arguments.speculate), own[0])
        speculate(chosen, repeats, path)
        return
    report = made(arguments, options) if name == "making" else compared(stage, taking_part, options)
    path.with_suffix(".html").write_text(page_of(report), encoding="utf-8")
    write_json(path, report.to_json())


def is_measured(path: Path, taking_part: Sequence[Contender], options: Options, *, is_making: bool) -> bool:
    """Whether a file holds this stage: of the same systems in the same order, and at least as many runs."""
    if not path.exists():
        return False
    data = json.loads(path.read_text(encoding="utf-8"))
    if "tasks" in data:
        digests = [item.digest for item in taking_part]
        return data["digest"] in digests and data["rounds"] >= options.repeats
    report = report_from(data, path)
    wanted = [(item.name, item.digest) for item in taking_part]
    is_same = is_making or [(system.name, system.digest) for system in report.systems] == wanted
    enough = report.options.repeats >= options.repeats and (is_making or report.options.starts >= options.starts)
    return is_same and enough and report.options.threads == options.threads


def compared(stage: Stage, taking_part: Sequence[Contender], options: Options) -> Report:
    """One interleaved run."""
    date, machine = datetime.now(UTC).isoformat(timespec="seconds"), take_fingerprint(options.threads)
    vocab_size = Bundle.open(Path(taking_part[0].path)).manifest.model.vocab_size
    works = [Work(setting, vocab_size) for setting in stage.settings]
    systems = tuple(measure(taking_part, works, options, Progress()))
    ratios = () if stage.is_own else ratios_of(systems)
    return Report(machine=machine, options=options, systems=systems, ratios=ratios, piston=version("piston"), date=date)


def made(arguments: argparse.Namespace, options: Options) -> Report:
    """The stages of the recipes; targets whose compiler is not installed are left out with a note."""
    checkpoint = arguments.checkpoint or demo_checkpoint()
    jobs = jobs_of(sorted(RECIPES.glob("*.toml")), checkpoint)
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("left out: tensorrt-rtx is not installed (pip install 'piston[tensorrt-rtx]')", file=sys.stderr)
        jobs = [job for job in jobs if "tensorrt-rtx" not in job.name]
    return measured(jobs, replace(options, starts=0), Progress())


def speculate(bundle: Contender, rounds: int, path: Path) -> None:
    """Prompt lookup in a process of its own; it fails where an answer differs, but is written down."""
    script = [sys.executable, HERE / "bench_speculation.py", bundle.path, "--rounds", str(rounds), "--json"]
    done = subprocess.run(script, stdout=subprocess.PIPE, check=False)
    if not done.stdout.strip():
        raise subprocess.CalledProcessError(done.returncode, script)
    write_json(path, {"digest": bundle.digest, "rounds": rounds, "tasks": json.loads(done.stdout)})
    done.check_returncode()


def working(rivals: Sequence[Contender], own: Contender, options: Options, memory: Path) -> list[Contender]:
    """The systems that answer; for each other one the reason is printed, and the table lacks it.

    Who has answered once is remembered in a file and not asked again.
    """
    answered = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else []
    limits = {"threads": options.threads, "max_length": 64, "max_batch": 2}
    probe = Work(Setting(2, 8, 2), Bundle.open(Path(own.path)).manifest.model.vocab_size)
    for rival in (rival for rival in rivals if rival.name not in answered):
        try:
            with open_child(rival, limits) as child:
                child.run(probe.rows(0), 2)
        except Error as problem:
            print(f"left out: {problem}", file=sys.stderr)
        else:
            answered.append(rival.name)
    write_json(memory, sorted(answered))
    return [rival for rival in rivals if rival.name in answered]


def demo_checkpoint() -> str:
    """The path of the demo checkpoint."""
    script = [sys.executable, HERE / "demo_checkpoint.py"]
    return subprocess.run(script, check=True, capture_output=True, text=True).stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    main()
