"""Every row of the comparison with rivals, from one command: four stages, each one interleaved run of all systems.

    prompt   decode and prefill after 512 tokens       context  decode after 2,000 tokens
    batch    decode of four rows together              starts   new processes: first token, memory
    growth   Piston alone: prefill by length, decode by context, load by size

Each stage writes OUT/STAGE.json (the schema of `piston bench --json`) and OUT/STAGE.html, and is skipped when it is
there: an interrupted run is taken up where it stopped (`--again` measures anew). OUT/table.md is written from whatever
stages there are. It takes ten minutes on two cores; leave the machine alone meanwhile. rivals.json is made by
scripts/prepare_rivals.py.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from piston.runtime.bench.child import Contender
from piston.runtime.bench.contenders import bundle_contender, read_against
from piston.runtime.bench.fingerprint import num_cores, take_fingerprint
from piston.runtime.bench.measure import measure, open_child
from piston.runtime.bench.metrics import METRICS
from piston.runtime.bench.page import page_of
from piston.runtime.bench.ratios import ratios_of
from piston.runtime.bench.reading import report_from
from piston.runtime.bench.report import Options, Ratio, Report, System
from piston.runtime.bench.table import figure, lines_of, machine_lines, ratio_text
from piston.runtime.bench.workload import Setting, Work
from piston.runtime.bundle import Bundle
from piston.runtime.console import Progress
from piston.runtime.errors import Error

BUSY = 1.0  # load of the last minute
GROWTH = (128, 512, 1024, 2048, 4000)


class Stage(NamedTuple):
    """One interleaved run; with `is_own` only Piston's bundles take part."""

    settings: tuple[Setting, ...]
    repeats: int
    starts: int = 0
    is_own: bool = False


STAGES = {
    "prompt": Stage((Setting(1, 512, 64),), repeats=6),
    "context": Stage((Setting(1, 2000, 32),), repeats=4),
    "batch": Stage((Setting(4, 128, 32),), repeats=5),
    "starts": Stage((Setting(1, 128, 8),), repeats=1, starts=4),
    "growth": Stage(tuple(Setting(1, length, 24) for length in GROWTH), repeats=3, starts=3, is_own=True),
}


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: whose figure against whose. Of `ours` and of `theirs` the best is taken; with `each` all of `theirs`."""

    row: str
    stage: str
    metric: str
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    at_least: float
    each: bool = False


OPTIONAL = ("int8-kv8",)  # w8 or w8a8 with an INT8 cache
INT8, INT4 = ("w8a8", "w8", *OPTIONAL), ("w4",)
ALL = (*INT8, *INT4)
RIVALS = ("genai-int8", "genai-int4", "openvino-int8", "ct2-int8", "llama.cpp-Q4_0", "llama.cpp-Q4_1", "llama.cpp-Q8_0")
GOALS = (
    Goal("int8 decode", "prompt", "decode", INT8, ("openvino-int8",), 2.0),
    Goal("int8 decode", "prompt", "decode", INT8, ("genai-int8",), 1.3),
    Goal("int4 decode", "prompt", "decode", INT4, ("genai-int4", "llama.cpp-Q4_0", "llama.cpp-Q4_1"), 1.2),
    Goal("prefill 512", "prompt", "prefill", INT8, ("openvino-int8",), 1.0),
    Goal("prefill 512", "prompt", "prefill", INT8, ("genai-int8", "genai-int4"), 8.0, each=True),
    Goal("decode after 2,000 tokens", "context", "decode", ALL, RIVALS, 1.3),
    Goal("batch 4 decode", "batch", "decode", ALL, RIVALS, 1.2),
    Goal("new process to first token", "starts", "first_token", ALL, RIVALS, 1.5),
    Goal("peak memory", "starts", "peak", ALL, RIVALS, 1.0),
)


def main() -> None:
    """Run the stages that are missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ALL:
        help_text = f"the demo model in {name}{' (may be left out)' if name in OPTIONAL else ''}"
        parser.add_argument(f"--{name}", type=Path, required=name not in OPTIONAL, metavar="BUNDLE", help=help_text)
    parser.add_argument("--rivals", type=Path, required=True, metavar="FILE", help="of scripts/prepare_rivals.py")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT")
    parser.add_argument("--only", nargs="+", choices=STAGES, default=list(STAGES), metavar="STAGE", help="some stages")
    parser.add_argument("--skip", nargs="*", default=["transformers"], metavar="NAME", help="rivals to leave out")
    parser.add_argument("--repeats", type=int, metavar="N", help="runs of each stage (default: 3 to 6)")
    parser.add_argument("--again", action="store_true", help="measure stages that are there already")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    failed = []
    try:
        given = {name: getattr(arguments, name.replace("-", "_")) for name in ALL}
        own = [
            replace(bundle_contender(path.absolute()), name=name) for name, path in given.items() if path is not None
        ]
        rivals = [item for item in read_against([], [], arguments.rivals) if item.name not in arguments.skip]
    except Error as problem:
        sys.exit(f"error: {problem}")
    for name in arguments.only:
        if arguments.again or not (arguments.out / f"{name}.json").exists():
            try:
                run_stage(name, own, rivals, arguments, Progress())
            except Error as problem:
                failed.append(f"error: stage {name}: {problem}")
    write_table(arguments.out)
    if failed:
        sys.exit("\n".join(failed))


def run_stage(
    name: str, own: Sequence[Contender], rivals: Sequence[Contender], arguments: argparse.Namespace, progress: Progress
) -> None:
    """Measure one stage and write its files."""
    stage, load = STAGES[name], os.getloadavg()[0]
    busy = f"; the machine is busy (load {load:.1f}), so its figures will scatter" if load > BUSY else ""
    print(f"stage {name}{busy}", file=sys.stderr)
    options = Options(repeats=arguments.repeats or stage.repeats, warmup=1, starts=stage.starts, threads=num_cores())
    date, machine = datetime.now(UTC).isoformat(timespec="seconds"), take_fingerprint(options.threads)
    vocab_size = Bundle.open(Path(own[0].path)).manifest.model.vocab_size
    works = [Work(setting, vocab_size) for setting in stage.settings]
    contenders = (
        [*own] if stage.is_own else [*own, *working(rivals, vocab_size, options, arguments.out / "answered.json")]
    )
    systems = tuple(measure(contenders, works, options, progress))
    ratios = () if stage.is_own else ratios_of(systems)
    report = Report(
        machine=machine, options=options, systems=systems, ratios=ratios, piston=version("piston"), date=date
    )
    (arguments.out / f"{name}.html").write_text(page_of(report), encoding="utf-8")
    path = arguments.out / f"{name}.json"
    path.with_suffix(".part").write_text(json.dumps(report.to_json()), encoding="utf-8")
    path.with_suffix(".part").replace(path)
    for line in lines_of(report):
        print(line)


def working(rivals: Sequence[Contender], vocab_size: int, options: Options, memory: Path) -> list[Contender]:
    """The rivals that answer; of each other one the reason is told, and the table will lack it.

    Who has answered once is remembered in a file and not asked again.
    """
    answered = json.loads(memory.read_text(encoding="utf-8")) if memory.exists() else []
    found = [rival for rival in rivals if rival.name in answered]
    limits = {"threads": options.threads, "max_length": 64, "max_batch": 2}
    probe = Work(Setting(2, 8, 2), vocab_size)
    for rival in (rival for rival in rivals if rival.name not in answered):
        try:
            with open_child(rival, limits) as child:
                child.run(probe.rows(0), 2)
        except Error as problem:
            print(f"left out: {problem}", file=sys.stderr)
        else:
            found.append(rival)
    memory.write_text(json.dumps(sorted({*answered, *(rival.name for rival in found)})), encoding="utf-8")
    return [rival for rival in rivals if rival in found]


def write_table(out: Path) -> None:
    """OUT/table.md, printed too."""
    paths = {name: out / f"{name}.json" for name in STAGES}
    reports = {
        name: report_from(json.loads(path.read_text(encoding="utf-8")), path)
        for name, path in paths.items()
        if path.exists()
    }
    lines = [
        "| | Piston | rival | ratio | goal | |",
        "|---|---|---|---|---|---|",
        *(line for goal in GOALS if goal.stage in reports for line in rows_of(goal, reports[goal.stage])),
    ]
    if "growth" in reports:
        lines += ["", *growth_lines(reports["growth"])]
    for name, report in reports.items():
        lines += ["", f"{name}, {report.date}: {'; '.join(machine_lines(report))}"]
    text = "\n".join(lines) + "\n"
    (out / "table.md").write_text(text, encoding="utf-8")
    print(text)


def rows_of(goal: Goal, report: Report) -> Iterable[str]:
    """Lines of the table for one goal; one for each rival with `each`."""
    ours = best([system for system in report.systems if system.name in goal.ours], goal.metric)
    theirs = [system for system in report.systems if system.name in goal.theirs]
    for rival in theirs if goal.each else [best(theirs, goal.metric)] if theirs else []:
        if rival is None or ours is None:
            continue
        ratio = next(item for item in ratios_of([ours, rival]) if item.metric == goal.metric)
        yield row_of(goal, ours, rival, ratio)


def row_of(goal: Goal, ours: System, rival: System, ratio: Ratio) -> str:
    """One line."""
    unit = METRICS[goal.metric].unit
    mark = "met" if ratio.ratio.value >= goal.at_least else "**missed**"
    cells = [
        goal.row,
        f"{ours.name} {figure(median_of(ours, goal.metric), unit)}",
        f"{rival.name} {figure(median_of(rival, goal.metric), unit)}",
        ratio_text(ratio.ratio),
        f"{goal.at_least:.1f}x",
        mark,
    ]
    return f"| {' | '.join(cells)} |"


def best(systems: Sequence[System], metric: str) -> System | None:
    """The system with the best median."""
    sign = 1 if METRICS[metric].is_better_high else -1
    return max(systems, key=lambda system: sign * median_of(system, metric), default=None)


def median_of(system: System, metric: str) -> float:
    """The median of a figure, of starts or of the stage's one setting."""
    metrics = system.metrics if METRICS[metric].is_of_start else system.settings[0].metrics
    return metrics[metric]["p50"].value


def growth_lines(report: Report) -> Iterable[str]:
    """How cost grows: prefill per token and decode step by length, and load by the size of the bundle."""
    heads = [f"{measured.setting.prompt_len:,}" for measured in report.systems[0].settings]
    yield f"| growth: tokens of context | {' | '.join(heads)} | bundle, MB | load, ms |"
    yield f"|{'---|' * (len(heads) + 3)}"
    for system in report.systems:
        size = sum(path.stat().st_size for path in Path(system.path).rglob("*") if path.is_file()) / 1e6
        for what, metric, scale in (("prefill, ms a token", "prefill", 1e3), ("decode, ms a token", "tpot", 1e3)):
            values = [measured.metrics[metric]["p50"].value for measured in system.settings]
            shown = [scale / value if metric == "prefill" else scale * value for value in values]
            ends = f"{size:,.0f} | {median_of(system, 'load') * 1e3:,.0f}" if metric == "prefill" else " | "
            yield f"| {system.name}: {what} | {' | '.join(f'{value:.3f}' for value in shown)} | {ends} |"


if __name__ == "__main__":
    main()
