"""Which engine of a bundle this machine runs best, why not the others, and how each kind is opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from piston.runtime.bundle import Bundle
from piston.runtime.engine import Engine
from piston.runtime.errors import BundleError, Error
from piston.runtime.machine import Machine
from piston.runtime.manifest import EngineSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How an engine is to be loaded."""

    num_slots: int
    capacity: int
    threads: int = 0
    profile: str | None = None  # where ONNX Runtime's profile goes; other backends write none


@dataclass(frozen=True, slots=True)
class Backend:
    """What runs a target family: `check` raises what stands in the way on a machine, `open` loads."""

    check: Callable[[Bundle, EngineSpec, Machine], None]
    open: Callable[[Bundle, EngineSpec, Sizes], Engine]


@dataclass(frozen=True, slots=True)
class Verdict:
    """One engine of a bundle on one machine; `problem` is what stands in its way."""

    spec: EngineSpec
    reason: str
    problem: Error | None = None


def choose(
    bundle: Bundle, target: str | None = None, machine: Machine | None = None
) -> tuple[EngineSpec, dict[str, str]]:
    """The best engine that runs here, and a sentence about each of the others by target.

    A `target` that is named limits the choice to that engine, or to the engines of that family: nothing else is ever
    taken in its place.

    Raises:
        BundleError: this is no bundle, or it has no such engine.
        Error: none runs here. With one candidate it is that engine's own error, else a BundleError with every reason.
    """
    verdicts = judge(bundle, target, machine)
    chosen = next((verdict for verdict in verdicts if verdict.problem is None), None)
    if chosen is not None:
        return chosen.spec, {verdict.spec.target: verdict.reason for verdict in verdicts if verdict is not chosen}
    if len(verdicts) == 1 and (problem := verdicts[0].problem) is not None:
        raise problem
    reasons = "; ".join(f"{verdict.spec.target}: {verdict.reason.rstrip('.')}" for verdict in verdicts)
    raise BundleError(f"No engine of {bundle.directory} runs here. {reasons}.")


def judge(bundle: Bundle, target: str | None = None, machine: Machine | None = None) -> list[Verdict]:
    """A verdict about each engine that `target` admits, the best family first; raises BundleError as `choose` does."""
    machine = machine or Machine()
    verdicts: list[Verdict] = []
    best: EngineSpec | None = None
    for spec in sorted(bundle.engines(target), key=_rank):
        try:
            backend_of(spec).check(bundle, spec, machine)
        except Error as problem:
            verdicts.append(Verdict(spec, str(problem), problem))
            continue
        verdicts.append(Verdict(spec, f"It runs here too, {best.target} is preferred." if best else "It is the best."))
        best = best or spec
    return verdicts


def open_engine(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    """Load an engine that `choose` gave; raises EngineError and MissingExtraError as the backend does."""
    return backend_of(spec).open(bundle, spec, sizes)


def backend_of(spec: EngineSpec) -> Backend:
    """The table's entry for an engine's family; raises BundleError for one that this version does not know."""
    if (backend := BACKENDS.get(family_of(spec.target))) is None:
        raise BundleError(f"This runtime has no backend for {spec.target}; build the bundle for ort-cpu.")
    return backend


def family_of(target: str) -> str:
    """The target without the GPUs it is for: tensorrt-rtx of tensorrt-rtx:sm89."""
    return target.partition(":")[0]


def _rank(spec: EngineSpec) -> int:
    families = list(BACKENDS)
    family = family_of(spec.target)
    return families.index(family) if family in families else len(families)


def _check_ort_cpu(bundle: Bundle, spec: EngineSpec, machine: Machine) -> None:
    del bundle, spec
    machine.require_module("onnxruntime", "ort")


def _open_ort_cpu(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    from piston.runtime.ort_engine import OrtEngine, OrtOptions

    return OrtEngine.open(
        bundle.directory / spec.path,
        spec.cache,
        num_slots=sizes.num_slots,
        capacity=sizes.capacity,
        options=OrtOptions(threads=sizes.threads, profile=sizes.profile),
    )


# The best first: what the user built for this very GPU, then what runs on any.
BACKENDS: Mapping[str, Backend] = {
    "ort-cpu": Backend(_check_ort_cpu, _open_ort_cpu),
}
