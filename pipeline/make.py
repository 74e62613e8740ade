"""One run: takes each stage from the cache or runs it, judges the gates, and publishes the bundle that meets them."""

import dataclasses
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from piston.bench.baseline import Reference, read_reference
from piston.core.atomic_dir import atomic_dir, scratch_dir
from piston.core.bundle.manifest import FILE_NAME, Manifest, sha256_of
from piston.core.console import note
from piston.core.errors import BundleError, Error, MisuseError
from piston.pipeline.cache import Cache, Entry
from piston.pipeline.cache_key import machine
from piston.pipeline.changes import judge_changes
from piston.pipeline.child import Outcome, Runner, run_verb
from piston.pipeline.lock import check_inputs, compare, lock_of, read_lock, write_lock
from piston.pipeline.outputs import check_outputs
from piston.pipeline.plan import EVAL_PAGE, Checkpoint, Stage, locate, plan, words_for
from piston.pipeline.recipe import Recipe
from piston.pipeline.report import EngineReport, Report, StageReport
from piston.pipeline.task_checks import check_files
from piston.pipeline.values import values_of
from piston.runtime.verify import Mismatch
from piston.runtime.verify_outputs import OutputMismatch

GIB = 2**30
DEFAULT_CACHE_BYTES = 20 * GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class MakeOptions:
    """Paths of checkpoint and cache, the cache's size limit, and the function that runs a command."""

    cache_dir: Path
    cache_bytes: int = DEFAULT_CACHE_BYTES
    checkpoint: str | None = None  # instead of the recipe's path
    locked: bool = False  # make everything again and compare it with the lock file
    pages: Path | None = None  # where the page of `piston eval` is copied to
    quiet: bool = False
    run: Runner = run_verb


def make(recipe: Recipe, path: Path, options: MakeOptions) -> Report:
    """Make the bundle of the recipe read from `path`, judge it, and publish it if every gate is met.

    Raises:
        MisuseError: the checkpoint or a baseline does not exist, or the output is not a bundle.
        Error: the checkpoint or the inputs differ from the recipe or the lock, or a stage failed (with its message).
    """
    base = path.absolute().parent
    checkpoint = locate(recipe, base, options.checkpoint)
    bundle, lock_path = base / recipe.output.bundle, base / recipe.output.lock
    check_outputs(recipe, path, checkpoint, options.pages)
    check_files(recipe, base)
    baseline = _baseline(recipe, base)
    stages = plan(recipe, base, checkpoint)
    cache = Cache(options.cache_dir.absolute(), options.cache_bytes)
    before = read_lock(lock_path) if options.locked else None
    if before is not None:
        check_inputs(before, lock_path, checkpoint, stages)
    with _place(cache, is_scratch=options.locked) as place:
        run = Run(recipe, base, checkpoint, stages, place, options)
        results = {stage.name: run.result(stage) for stage in run.stages}
        report = _report_of(run, path, results, baseline)
        if options.pages is not None and "eval" in results:
            options.pages.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(run.files("eval") / EVAL_PAGE, options.pages / EVAL_PAGE)
        after = lock_of(run.manifest, Manifest.read(run.built_from), run.output("build"), checkpoint, stages)
        if before is not None:
            report = dataclasses.replace(report, lock=compare(before, after, lock_path))
        if report.is_met:
            run.publish(bundle)
            if before is None:
                write_lock(lock_path, after)
    _evict(cache)
    return dataclasses.replace(report, is_published=report.is_met)


@contextmanager
def _place(cache: Cache, *, is_scratch: bool) -> Iterator[Cache]:
    """The cache, or for a locked run an empty temporary one next to it, so that everything is made again."""
    with ExitStack() as stack:
        if is_scratch:
            directory = stack.enter_context(scratch_dir(cache.root, "locked"))
            cache = Cache(directory / "cache", cache.max_bytes)
        stack.callback(cache.release)
        yield cache


def _evict(cache: Cache) -> None:
    """Trim the cache; an error is only printed, so that the report of the published bundle is not lost."""
    try:
        for removed in cache.evict():
            note(f"  removed {removed} from the cache, which holds at most {cache.max_bytes / GIB:.1f} GiB")
    except OSError as problem:
        note(f"warning: the cache {cache.root} could not be trimmed: {problem}")


def _report_of(run: "Run", path: Path, results: Mapping[str, Mapping[str, Any]], baseline: Reference | None) -> Report:
    manifest, gates = run.manifest, run.recipe.parsed_gates
    values = values_of(manifest, results)
    changes = {} if baseline is None else judge_changes(gates, results["bench"], baseline)
    return Report(
        recipe=str(path),
        recipe_sha256=sha256_of(path),
        checkpoint=run.checkpoint.source,
        checkpoint_sha256=run.checkpoint.sha256,
        model=manifest.model.name,
        scheme=manifest.model.scheme,
        bundle=os.path.normpath(run.base / run.recipe.output.bundle),
        is_published=False,
        stages=tuple(run.reports[stage.name] for stage in run.stages),
        engines=tuple(_engine(spec.target, spec.actual) for spec in manifest.engines),
        values=values,
        mismatches=_mismatches(results.get("verify", {})),
        gates=tuple(changes.get(gate.text) or gate.judge(values) for gate in gates),
        machine=machine(),
        tools={name: version for stage in run.stages for name, version in stage.tools.items()},
        piston=importlib.metadata.version("piston"),
    )


@dataclass(slots=True)
class Run:
    """The stages of one run and their results so far."""

    recipe: Recipe
    base: Path
    checkpoint: Checkpoint
    stages: tuple[Stage, ...]
    cache: Cache
    options: MakeOptions
    reports: dict[str, StageReport] = field(default_factory=dict)
    sound: dict[str, Entry] = field(default_factory=dict)  # entries whose files were verified in this run

    @property
    def manifest(self) -> Manifest:
        """The manifest of the bundle in the cache."""
        return Manifest.read(self.output("build"))

    def result(self, stage: Stage) -> dict[str, Any]:
        """The JSON that a stage printed, from the cache or by running it."""
        result: dict[str, Any] = self._entry(stage, is_read=False).record["result"]
        return result

    def output(self, name: str) -> Path:
        """The model directory or bundle that a stage wrote, with every file verified."""
        return self.files(name) / ("bundle" if name == "build" else "model")

    def files(self, name: str) -> Path:
        """The output directory of a stage, verified."""
        stage = next(stage for stage in self.stages if stage.name == name)
        return self._entry(stage, is_read=True).output

    @property
    def built_from(self) -> Path:
        """The model directory that the bundle was built from."""
        build = next(stage for stage in self.stages if stage.name == "build")
        return self.output(build.reads[0]) if build.reads else Path(self.checkpoint.source)

    def publish(self, bundle: Path) -> None:
        """Copy the bundle to its output path, unless the same bundle is there already."""
        source = self.output("build")
        manifest = Manifest.read(source)
        if _is_same(source, bundle, manifest):
            return
        with atomic_dir(bundle, overwrite=True, reads=self.checkpoint.reads) as work:
            for name in (*manifest.files, FILE_NAME):  # copytree would hide a full disk
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / name, work / name)
            manifest.verify(work)

    def _entry(self, stage: Stage, *, is_read: bool) -> Entry:
        if stage.name in self.sound:
            return self.sound[stage.name]
        with self.cache.locked(stage.name, stage.key):
            entry = self.cache.find(stage.name, stage.key)
            if entry is not None and not entry.record["result"].get("passed", True):
                entry = None  # a bundle that failed `verify` is verified again
            if entry is not None and is_read and (damage := entry.damage()) is not None:
                self.cache.remove(entry.directory, damage)
                entry = None
            if entry is None:
                entry = self._made(stage)
                self.reports[stage.name] = _report(stage, entry, is_cached=False)
            self.reports.setdefault(stage.name, _report(stage, entry, is_cached=True))
        if is_read or not self.reports[stage.name].is_cached:
            self.sound[stage.name] = entry
        return entry

    def _made(self, stage: Stage) -> Entry:
        outputs = [self.output(name) for name in stage.reads]
        with self.cache.making(stage.name, stage.key) as making:
            words = words_for(stage, self.recipe, self.checkpoint, outputs, making.output)
            if not self.options.quiet:
                note(" ".join(["piston", stage.name, *stage.options]))
            outcome = self.options.run(words, self.base, self.options.quiet)
            _check(stage, outcome)
            making.record = {
                "stage": stage.name,
                "key": stage.key,
                "options": list(stage.options),
                "tools": dict(stage.tools),
                "files_read": dict(stage.files),
                "seconds": outcome.seconds,
                "peak_bytes": outcome.peak_bytes,
                "result": outcome.result,
            }
        entry = self.cache.find(stage.name, stage.key)
        assert entry is not None
        return entry


def _check(stage: Stage, outcome: Outcome) -> None:
    """A failed stage has no entry; a negative result of `verify` is a result and is kept."""
    if outcome.status == 0 or (stage.name == "verify" and "passed" in outcome.result):
        return
    hint = ' (where no engine can run: skip = ["verify"] in [gates])' if stage.name == "verify" else ""
    raise Error(f"`piston {stage.name}` failed: {outcome.error or f'exit status {outcome.status}'}{hint}")


def _baseline(recipe: Recipe, base: Path) -> Reference | None:
    """The baseline of gates, read before any work."""
    stated = (recipe.bench or {}).get("baseline")
    if stated is None:
        return None
    reference = read_reference(base / stated)
    if reference.side is not None:
        raise MisuseError(f"bench.baseline {stated} is a virtual environment; give a bundle, or the JSON of a run.")
    return dataclasses.replace(reference, path=str(Path(stated)))


def _is_same(source: Path, bundle: Path, manifest: Manifest) -> bool:
    try:
        if (source / FILE_NAME).read_bytes() != (bundle / FILE_NAME).read_bytes():
            return False
        manifest.verify(bundle)
    except (OSError, BundleError):
        return False
    return True


def _report(stage: Stage, entry: Entry, *, is_cached: bool) -> StageReport:
    return StageReport(
        name=stage.name,
        key=stage.key,
        is_cached=is_cached,
        seconds=float(entry.record["seconds"]),
        peak_bytes=int(entry.record["peak_bytes"]),
        num_bytes=entry.num_bytes,
    )


def _mismatches(verdict: Mapping[str, Any]) -> tuple[str, ...]:
    """Why `verify` did not pass; the mismatches alone do not say that nothing could be compared."""
    found = tuple(
        str(OutputMismatch(**item) if "distance" in item else Mismatch(**item))
        for item in verdict.get("mismatches", ())
    )
    if not found and verdict.get("num_decided") == 0:
        return (f"none of {verdict['num_tokens']} tokens leads the second best clearly enough to be compared",)
    return found


def _engine(target: str, got: Mapping[str, Any]) -> EngineReport:
    return EngineReport(
        target=target,
        dtype=str(got.get("dtype", "")),
        cache=str(got.get("cache", "")),
        linears=dict(got.get("linears", {})),
        kept=tuple(got.get("linears_in_float", ())),
    )
