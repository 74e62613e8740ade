"""The baseline of a run: the JSON of an earlier run, or a system that is measured in turns with this one.

The latter is another bundle, or another Piston that runs the same recipes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from piston.bench.child import Contender
from piston.bench.job import Job, Side
from piston.bench.load.setting import LoadSetting
from piston.bench.reading import report_from
from piston.bench.report import Baseline, Options, Report, System
from piston.bench.systems import bundle_contender, python_of
from piston.bench.workload import Setting
from piston.core.errors import MisuseError


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """Exactly one is set: `earlier` for a file, `contender` for a bundle, `side` for an environment."""

    path: str
    earlier: Report | None = None
    contender: Contender | None = None
    side: Side | None = None

    def check(self, options: Options, settings: Sequence[Setting | LoadSetting]) -> None:
        """Refuse an earlier run with other settings, before measuring; raises MisuseError."""
        if self.earlier is None:
            return
        there = [measured.setting for measured in self.earlier.systems[0].measured]
        missing = [setting for setting in settings if setting not in there]
        if missing:
            raise MisuseError(
                f"--baseline {self.path} was not measured at {missing[0].name}, but at "
                f"{'; '.join(setting.name for setting in there)}; give the same options, or measure it again."
            )
        self._check_options(options, ("threads", "warmup"))

    def check_stages(self, jobs: Sequence[Job]) -> None:
        """Refuse an earlier run with other stages or options, before running any; raises MisuseError."""
        if self.earlier is None:
            return
        there = {stage.name: stage for stage in self.earlier.systems[0].stages}
        for job in jobs:
            if job.name not in there:
                names = ", ".join(there) or "none"
                raise MisuseError(f"--baseline {self.path} has no stage {job.name}, but {names}; measure it again.")
            if there[job.name].options != job.options:
                raise MisuseError(
                    f"--baseline {self.path} ran {job.name} with {' '.join(there[job.name].options) or 'no options'}, "
                    f"this is {' '.join(job.options) or 'none'}; measure it again."
                )

    def _check_options(self, options: Options, names: Sequence[str]) -> None:
        assert self.earlier is not None
        for name in names:
            now, then = getattr(options, name), getattr(self.earlier.options, name)
            if now != then:
                raise MisuseError(f"--baseline {self.path} was measured with --{name} {then}, this is {now}.")

    def samples(self, options: Options) -> Options | None:
        """The options with the repeats and starts that an earlier run really has; None for a bundle."""
        if self.earlier is None:
            return None
        own = self.earlier.systems[0]
        repeats = min(len(item.runs) for item in (*own.measured, *own.stages))
        return replace(options, repeats=repeats, starts=len(own.starts))

    def system(self, report: Report) -> System:
        """The baseline's system: from the file, or the last system of this run."""
        return self.earlier.systems[0] if self.earlier is not None else report.systems[-1]

    def baseline(self, report: Report) -> Baseline:
        """The baseline as the report states it."""
        if self.earlier is None:
            return Baseline(path=self.path, kind="bundle" if self.side is None else "environment", notes=())
        notes = report.machine.differences(self.earlier.machine)
        if notes:
            notes.append("machines or versions differ: they may explain a change, not the code")
        return Baseline(path=self.path, kind="file", notes=tuple(notes))


def read_reference(path: Path) -> Reference:
    """A directory is a bundle or, with a Python in it, an environment; a file is an earlier report.

    Raises:
        MisuseError: the path does not exist, or the file is not a report of `piston bench --json`.
        BundleError: the bundle cannot be opened.
    """
    if path.is_dir() and (python := python_of(path)) is not None:
        return Reference(path=str(path), side=Side(name="baseline", python=str(python.absolute())))
    if path.is_dir():
        return Reference(path=str(path), contender=bundle_contender(path))
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise MisuseError(f"Cannot read --baseline {path}: {problem.strerror}.") from None
    except (ValueError, RecursionError):
        raise MisuseError(f"--baseline {path} is not JSON; write it with `piston bench --json`.") from None
    return Reference(path=str(path), earlier=report_from(data, path))
