"""Kill stages and whole runs at random moments, and check that nothing half-written is ever seen.

    python scripts/fault_injection.py --kills 200          the stages on a toy model, and `piston make` around them
    python scripts/fault_injection.py --kills 40 --fake    `piston make` around stages that only write files: no torch

After every kill the output is absent, the old one or the new one, whole; every entry of the cache that can be seen is
whole; and a run that is left alone succeeds, and clears what the killed ones left. Prints one JSON object; exits 1 if a
torn output was seen. Stages run in forked children, so that no time goes into imports.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/support"))

from making import Commands, write_recipe, write_toy_recipe  # noqa: E402 - found by the line above

from piston.core.atomic_dir import sweep  # noqa: E402
from piston.core.bundle.manifest import Manifest  # noqa: E402
from piston.core.errors import Error  # noqa: E402
from piston.pipeline.cache import read_entry  # noqa: E402
from piston.pipeline.child import Outcome  # noqa: E402
from piston.pipeline.make import MakeOptions, make  # noqa: E402
from piston.pipeline.recipe import read_recipe  # noqa: E402

JUDGED = """
[gates]
require = ["verify"]

[output]
bundle = "bundle"
"""
Work = Callable[[], object]


@dataclass
class Fault:
    """One kind of thing that is killed: `work` is run, `check` says what was left (or raises AssertionError)."""

    name: str
    work: Work
    check: Callable[[], str]
    reset: Callable[[int], object]
    share: int
    seconds: float = 0.0
    seen: Counter = field(default_factory=Counter)


def in_child(work: Work, said: int | None = None) -> int:
    """Fork; the child runs `work`, its words going to the descriptor `said` or nowhere, and leaves."""
    if (pid := os.fork()) == 0:
        status = 1
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null if said is None or descriptor == 0 else said, descriptor)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - told, then it leaves
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)
    return pid


def clean(work: Work) -> float:
    """Run to the end in a child; seconds. It must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        _, status = os.waitpid(in_child(work, said.fileno()), 0)
        said.seek(0)
        assert status == 0, f"a run that was left alone failed: {said.read().decode(errors='replace')[-2000:]}"
    return time.perf_counter() - start


def killed(work: Work, seconds: float) -> bool:
    """Kill the child after some seconds; whether it was still running."""
    pid = in_child(work)
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.0005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def contents(directory: Path) -> dict[str, bytes]:
    """Every file below a directory."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def state_of(goal: Path, whole: list[dict[str, bytes]]) -> str:
    """Absent, or which of the whole outputs it is; anything else is torn."""
    if not goal.exists():
        return "absent"
    found = contents(goal)
    assert found in whole, f"{goal} is torn: {sorted(found)}"
    Manifest.read(goal).verify(goal)
    return "whole"


def stage_fault(name: str, goal: Path, work: Work, share: int) -> Fault:
    """A stage that replaces its own output: the old one must be there, or come back, after every kill."""
    clean(work)
    whole = [contents(goal)]
    there = {"before": False}  # whether there was an output when the stage that was killed began

    def check() -> str:
        before = state_of(goal, whole)
        swept = sweep(goal.parent, goal.name)
        after = state_of(goal, whole)
        assert after == "whole" or not there["before"], f"{goal} was lost"
        return (
            "put back" if before == "absent" and after == "whole" else f"{after}, {'leftovers' if swept else 'clean'}"
        )

    def reset(count: int) -> None:
        if count % 4 == 0:
            shutil.rmtree(goal, ignore_errors=True)  # every fourth kill hits a first build
        sweep(goal.parent, goal.name)
        there["before"] = goal.exists()

    return Fault(name, work, check, reset, share)


def make_fault(recipe: Path, run: object, share: int) -> Fault:
    """A full run: the bundle and every entry of the cache are complete or absent."""
    cache, bundle = recipe.parent / "cache", recipe.parent / read_recipe(recipe).output.bundle
    options = MakeOptions(cache_dir=cache, run=run, quiet=True)  # type: ignore[arg-type]

    def work() -> None:
        assert make(read_recipe(recipe), recipe, options).is_published

    clean(work)
    whole = [contents(bundle)]

    def check() -> str:
        for entry in cache.glob("*/*"):
            if entry.parent.name == "locks" or entry.name.startswith("."):
                continue
            found = read_entry(entry)
            assert found is not None, f"{entry} has no whole record"
            assert found.damage() is None, f"{entry}: {found.damage()}"
        before = state_of(bundle, whole)
        sweep(bundle.parent)
        return f"bundle {before}" if before == state_of(bundle, whole) else "put back"

    def reset(count: int) -> None:
        if count % 3 == 0:
            shutil.rmtree(cache, ignore_errors=True)
        if count % 10 == 0:
            shutil.rmtree(bundle, ignore_errors=True)

    return Fault("make", work, check, reset, share)


def fake_faults(directory: Path) -> list[Fault]:
    """`make` around commands that write files."""
    commands = Commands()
    commands.engine = b"engine" * 200_000

    def slow(words: list[str], where: Path, quiet: bool) -> Outcome:  # noqa: FBT001 - a Runner
        time.sleep(0.01)
        return commands(words, where, quiet)

    return [make_fault(write_recipe(directory), slow, 1)]


def real_faults(directory: Path) -> list[Fault]:
    """The stages on a two-layer llama, and `make` around them."""
    from checkpoints import write_checkpoint

    from piston.calibration.calibrate import calibrate  # noqa: F401 - imported before the forks
    from piston.cli.main import main

    checkpoint, exported, quantized = (directory / name for name in ("checkpoint", "exported", "quantized"))
    if (pid := os.fork()) == 0:  # no thread of torch may live in the process that forks
        write_checkpoint(checkpoint)
        os._exit(0)
    os.waitpid(pid, 0)
    recipe = write_toy_recipe(directory / "recipe.toml", JUDGED)

    def verb(*words: object) -> Work:
        def work() -> None:
            assert main([str(word) for word in words]) == 0

        return work

    def forked(words: list[str], where: Path, quiet: bool) -> Outcome:  # noqa: FBT001 - a Runner
        del quiet
        return run_forked(words, where)

    data = ["--data", "builtin", "--samples", "4", "--seq-len", "32", "--require", "ppl<=10000%"]
    replace = ["--overwrite", "--quiet"]

    def export(goal: Path) -> Work:
        return verb("export", checkpoint, "-o", goal, *replace)

    def quantize(goal: Path) -> Work:
        return verb("calibrate", exported, "-o", goal, "--scheme", "w8a8", *data, *replace)

    clean(export(exported))  # what the next stage reads is not what is killed
    clean(quantize(quantized))
    build = verb("build", quantized, "-o", directory / "bundle-alone", "--max-length", "80", *replace)
    return [
        stage_fault("export", directory / "killed-export", export(directory / "killed-export"), 2),
        stage_fault("calibrate", directory / "killed-calibrate", quantize(directory / "killed-calibrate"), 6),
        stage_fault("build", directory / "bundle-alone", build, 6),
        make_fault(recipe, forked, 6),
    ]


def run_forked(words: list[str], where: Path) -> Outcome:
    """A Runner that forks instead of starting a new Python; the command dies with its parent, as `run_verb`'s does."""
    from piston.cli.main import main
    from piston.pipeline.child import _die_with_parent

    parent = os.getpid()
    with tempfile.TemporaryFile() as printed:
        if (pid := os.fork()) == 0:
            status = 1
            try:
                _die_with_parent(parent)
                os.chdir(where)
                os.dup2(printed.fileno(), 1)
                sys.stdout = os.fdopen(1, "w")
                status = main([words[0], "--json", "--quiet", *words[1:]])
                sys.stdout.flush()
            finally:
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        printed.seek(0)
        text = printed.read()
    if status != 0:
        raise Error(f"{words[0]} failed")
    return Outcome(status=0, result=json.loads(text), seconds=0.1, peak_bytes=1, error="")


def inject(faults: list[Fault], kills: int, seed: int) -> dict[str, object]:
    """Kill `kills` times; what was seen of each kind. Raises AssertionError for anything torn or lost."""
    rng = random.Random(seed)  # noqa: S311 - moments, not secrets
    for fault in faults:
        fault.seconds = clean(fault.work)
    weights = [fault.share for fault in faults]
    while (total := sum(sum(fault.seen.values()) for fault in faults)) < kills:
        fault = rng.choices(faults, weights)[0]
        fault.reset(total)
        if not killed(fault.work, rng.uniform(0, 1.05 * fault.seconds)):
            fault.check()  # it was over before: no kill
            continue
        fault.seen[fault.check()] += 1
        if total % 10 == 0:
            clean(fault.work)
            print(f"{total} kills", file=sys.stderr)
    for fault in faults:
        clean(fault.work)
        fault.check()
    return {"kills": total, "torn": 0, "seen": {fault.name: dict(sorted(fault.seen.items())) for fault in faults}}


def main_() -> int:
    """Parse, inject, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, metavar="N")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--only", metavar="STAGE", help="export, calibrate, build or make")
    parser.add_argument("--fake", action="store_true", help="stages that only write files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "work"
        directory.mkdir()
        faults = fake_faults(directory) if arguments.fake else real_faults(directory)
        faults = [fault for fault in faults if arguments.only in {None, fault.name}]
        found = inject(faults, arguments.kills, arguments.seed)
        left = [str(path) for path in directory.rglob("*.part")]
        assert not left, f"a clean run left {left[0]}"
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main_())
