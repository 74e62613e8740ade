"""The report of a `piston make` run as frozen dataclasses; `to_json` follows docs/schemas/make.json."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from piston.core.gates import GateResult
from piston.core.schema import to_plain

FILES = ("report.json", "junit.xml", "summary.md", "index.html")
SBOM = "sbom.cdx.json"
Equality = Literal["bit-equal", "graph-equal", "numerically-equal", "none"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StageReport:
    """One stage: what it took, and whether it ran in this run."""

    name: str
    key: str
    is_cached: bool
    seconds: float
    peak_bytes: int
    num_bytes: int  # of what it wrote


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """One engine and its arithmetic."""

    target: str
    dtype: str
    cache: str
    linears: Mapping[str, float]  # shares of the multiply-adds; empty where they were not counted
    kept: tuple[str, ...]  # linears in float of a quantized model


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LockReport:
    """The run against the lock file."""

    path: str
    equality: Equality | None  # None where nothing was rebuilt to compare
    changed: tuple[str, ...]  # what differs from the lock


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The whole report."""

    recipe: str
    recipe_sha256: str
    checkpoint: str
    checkpoint_sha256: str | None
    model: str
    scheme: str
    bundle: str
    is_published: bool  # whether the bundle is there now
    stages: tuple[StageReport, ...]
    engines: tuple[EngineReport, ...]
    values: Mapping[str, float]  # every figure that a gate can name
    mismatches: tuple[str, ...]  # of verify
    gates: tuple[GateResult, ...]
    machine: Mapping[str, str]
    tools: Mapping[str, str]
    lock: LockReport | None = None
    piston: str = ""  # version
    schema: Literal[1] = 1

    @property
    def is_met(self) -> bool:
        """Whether every gate was met and a locked rebuild matches the lock in some way."""
        return all(gate.is_met for gate in self.gates) and (self.lock is None or self.lock.equality != "none")

    def to_json(self) -> dict[str, Any]:
        """Plain dicts and lists, as --json prints them."""
        plain: dict[str, Any] = to_plain(self)
        return {**plain, "is_met": self.is_met}
