"""The report of a benchmark as frozen dataclasses; `to_json` follows docs/schemas/bench.json."""

import dataclasses
from typing import Any, Literal

from piston.bench.fingerprint import Fingerprint
from piston.bench.load.run import LoadRun
from piston.bench.load.setting import LoadSetting
from piston.bench.profile import Profile
from piston.bench.workload import Setting
from piston.core.gates import GateResult
from piston.core.schema import to_plain
from piston.core.statistics import ConfidenceInterval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How it was measured; two reports compare where these and the settings agree."""

    repeats: int
    warmup: int
    starts: int  # new processes measured
    threads: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """One new process: seconds from its start to the first token, their parts, and its peak memory."""

    first_token: float
    imports: float
    load: float
    peak_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One call: `times[i]` is the second at which every row had i + 1 tokens.

    Of speech the second at which i + 1 segments were there, and the last one the end; `parts` has the seconds of the
    audio, and the number of tokens.
    """

    prompt_len: int  # tokens of each row
    times: tuple[float, ...]
    parts: dict[str, float]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """A system at one setting: every run, and the quantiles of each metric."""

    setting: Setting
    runs: tuple[Run, ...]
    metrics: dict[str, dict[str, ConfidenceInterval]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLoad:
    """A server at one load: every run, and the quantiles of each metric."""

    setting: LoadSetting
    runs: tuple[LoadRun, ...]
    metrics: dict[str, dict[str, ConfidenceInterval]]
    client_limit: float | None = None  # tokens a second that the client takes from an echo at this load

    @property
    def invalid(self) -> str | None:
        """Why the latencies of this setting are none: requests were refused, or in half of its runs the queue grew."""
        found = [run.invalid for run in self.runs if run.invalid is not None]
        is_refused = any(sent.problem is not None for run in self.runs for sent in run.sent)
        if not is_refused and 2 * len(found) < len(self.runs):
            return None
        return f"{found[0]} ({len(found)} of {len(self.runs)} runs)" if found else None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageRun:
    """One command in a new process: wall-clock and CPU seconds, peak resident memory, bytes written."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    written_bytes: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredStage:
    """A command that makes a bundle: every run of it, and the quantiles of each metric."""

    name: str  # the verb, the recipe, the target: `build w8a8 ort-cpu`
    verb: str
    options: tuple[str, ...]
    runs: tuple[StageRun, ...]
    metrics: dict[str, dict[str, ConfidenceInterval]]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One system: its identity, its start-ups, and its figures at each setting and stage."""

    name: str
    kind: str
    path: str
    digest: str | None  # of a bundle's manifest
    versions: dict[str, str]
    starts: tuple[Start, ...]
    metrics: dict[str, dict[str, ConfidenceInterval]]  # of the starts
    settings: tuple[Measured, ...] = ()
    stages: tuple[MeasuredStage, ...] = ()  # of recipes
    loads: tuple[MeasuredLoad, ...] = ()  # of a server
    size_bytes: int | None = None  # of the files of a bundle or a rival's model

    @property
    def measured(self) -> tuple[Measured | MeasuredLoad, ...]:
        """The settings, of a bundle or of a server."""
        return (*self.settings, *self.loads)

    def stage(self, name: str) -> MeasuredStage:
        """The stage of this name."""
        return next(stage for stage in self.stages if stage.name == name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """How many times better the bundle is than another system, over pairs of neighbouring runs."""

    rival: str
    metric: str
    setting: Setting | LoadSetting | None  # None: of the starts
    ratio: ConfidenceInterval


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """The baseline: a file of an earlier run, or a bundle or another Piston measured in this run."""

    path: str
    kind: Literal["file", "bundle", "environment"]
    notes: tuple[str, ...]  # differences other than the code


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole report; the first system is the named bundle, or the Piston that ran the recipes."""

    machine: Fingerprint
    options: Options
    systems: tuple[System, ...]
    ratios: tuple[Ratio, ...] = ()
    baseline: Baseline | None = None
    gates: tuple[GateResult, ...] = ()
    profile: Profile | None = None
    piston: str = ""  # version
    date: str = ""  # of the start, UTC
    schema: Literal[1] = 1

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, as --json prints them."""
        plain: dict[str, Any] = to_plain(self)
        return plain
