"""Measures systems in turns, each in a process of its own; what scripts/compare_*.py share.

Such a script has OPENERS: by kind, a function of a path and options that opens a system and returns a function, which
does a named piece of work and returns its answer. This file is also the far side, run by the Python of each system with
the standard library alone; the near side is piston.bench.child:

    python -I interleaved.py SCRIPT KIND PATH OPTIONS

Each line in is {"work", "calls", "wants_answer"}; each line out {"event": "did", "seconds", "answer", "peak_bytes"}.
"""

import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from piston.bench.child import Contender
    from piston.core.statistics import ConfidenceInterval

SERVE = Path(__file__).parents[1] / "bench" / "adapters" / "serve.py"
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # no system may ask a hub
TIMEOUT = 600.0  # seconds to load, and for one turn
Run = Callable[[str], Any]
Opener = Callable[[Path, dict[str, Any]], Run]


@dataclass(slots=True)
class Found:
    """What was measured of one system."""

    seconds: dict[str, list[float]] = field(default_factory=dict)  # by work: the median of each round's calls
    answers: dict[str, Any] = field(default_factory=dict)  # by work: that of the first round
    peak_bytes: int = 0  # resident memory of its process, the highest

    def median(self, work: str) -> float:
        """Seconds of a piece of work."""
        return statistics.median(self.seconds[work])


def measured(
    script: str,
    contenders: "Sequence[Contender]",
    works: Mapping[str, int],
    options: Mapping[str, Any],
    rounds: int,
) -> dict[str, Found]:
    """Run every piece of work in rounds, A B A B; the first round only warms up and gives the answers.

    Args:
        script: the file that has OPENERS.
        contenders: the systems.
        works: what to do, and how often a system does it in one turn.
        options: what every system is opened with.
        rounds: those that count.

    Raises:
        EngineError: a system cannot be started, or fails.
    """
    from piston.bench.child import Child
    from piston.core.console import Progress

    os.environ |= OFFLINE
    found = {contender.name: Found({work: [] for work in works}) for contender in contenders}
    words, progress = [__file__, str(Path(script).resolve())], Progress()
    total, done = (rounds + 1) * len(works) * len(contenders), 0
    with ExitStack() as stack:
        with progress.phase("loading"):
            children = {
                contender.name: stack.enter_context(Child(contender, dict(options), timeout=TIMEOUT, script=words))
                for contender in contenders
            }
        with progress.phase("running"):
            for turn in range(rounds + 1):
                for work, calls in works.items():
                    for name, child in children.items():
                        progress.step("running", done, total)
                        done += 1
                        did = child.ask({"work": work, "calls": calls, "wants_answer": turn == 0}, "did")
                        found[name].peak_bytes = did["peak_bytes"]
                        if turn == 0:
                            found[name].answers[work] = did["answer"]
                        else:
                            found[name].seconds[work].append(statistics.median(did["seconds"]))
    return found


def bundles_and_rivals(
    bundles: Sequence[Path], rivals: Mapping[str, Path], python: str
) -> "tuple[list[Contender], list[Contender]]":
    """The systems: bundles by the names of their directories, and rivals, whose kinds are their names."""
    from piston.bench.child import Contender
    from piston.bench.systems import bundle_contender

    others = [Contender(name=name, kind=name, path=str(path), python=python) for name, path in rivals.items()]
    return [bundle_contender(path) for path in bundles], others


def ratio_lines(
    found: Mapping[str, Found], own: Sequence[str], goals: Mapping[str, float | None], works: Mapping[str, str]
) -> Iterator[str]:
    """A table of ratios in Markdown: how many times faster each bundle is, over pairs of neighbouring turns.

    Args:
        found: of all systems.
        own: names of the bundles.
        goals: the rivals, and the ratio that is to be reached with each, if there is one.
        works: what is compared, with its description.
    """
    from piston.bench.table import ratio_text

    yield "| | bundle | against | ratio | goal | |\n|---|---|---|---|---|---|"
    for work, described in works.items():
        for rival, goal in goals.items():
            for name in own:
                ratio = ratio_of(found[name], found[rival], work)
                aim = ("-", "") if goal is None else (f"{goal:.1f}x", "met" if ratio.value >= goal else "**missed**")
                yield f"| {described} | {name} | {rival} | {ratio_text(ratio)} | {' | '.join(aim)} |"


def ratio_of(ours: Found, theirs: Found, work: str) -> "ConfidenceInterval":
    """How many times faster ours is."""
    import numpy as np

    from piston.bench.ratios import ratio_of_pairs

    return ratio_of_pairs(ours.seconds[work], theirs.seconds[work], np.random.default_rng(0))


def machine_line(threads: int, rounds: int) -> str:
    """Where and how it was measured."""
    from piston.bench.fingerprint import take_fingerprint

    machine = take_fingerprint(threads)
    load = "" if machine.load_average is None else f", load {machine.load_average:.2f} before"
    return (
        f"{machine.cpu}: {' '.join(machine.instructions)}; {machine.num_cores} cores, {machine.threads} threads{load}; "
        f"{rounds} rounds after one to warm up; intervals of 95 % (bootstrap over rounds)"
    )


def made(path: Path, words: Sequence[object]) -> Path:
    """A file or directory that a command makes; one that is there is not made again."""
    if not path.exists():
        print(f"{path} ...", file=sys.stderr, flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([str(word) for word in words], check=True, env=os.environ | OFFLINE, stdout=sys.stderr)
    return path


def main() -> None:
    """The far side: open a system, then work until stdin ends."""
    script, kind, path, options = sys.argv[1:5]
    serve = module_at(SERVE)
    out = serve.private_stdout()
    try:
        sys.path.append(str(Path(script).parent))
        began = time.perf_counter()
        run = importlib.import_module(Path(script).stem).OPENERS[kind](Path(path), json.loads(options))
        loaded = time.perf_counter() - began
        serve.send(out, {"event": "ready", "import_s": 0.0, "load_s": loaded, "versions": {}})
        for line in sys.stdin:
            serve.send(out, did(run, json.loads(line)) | {"peak_bytes": serve.peak_bytes()})
    except Exception as problem:  # noqa: BLE001 - whatever a rival raises becomes one line
        serve.send(out, {"event": "error", "message": f"{type(problem).__name__}: {problem}"})
        sys.exit(1)


def did(run: Run, request: Mapping[str, Any]) -> dict[str, Any]:
    """One turn."""
    seconds, answer = [], None
    for _ in range(request["calls"]):
        began = time.perf_counter()
        answer = run(request["work"])
        seconds.append(time.perf_counter() - began)
    return {"event": "did", "seconds": seconds, "answer": plain(answer) if request["wants_answer"] else None}


def plain(answer: Any) -> Any:
    """An answer as JSON has it: arrays become lists."""
    if isinstance(answer, list | tuple):
        return [plain(item) for item in answer]
    return answer.tolist() if hasattr(answer, "tolist") else answer


def module_at(path: Path) -> ModuleType:
    """Import a file whose folder is not on the path."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
