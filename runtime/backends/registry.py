"""Chooses the best engine of a bundle for this machine, explains why not the others, and opens engines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from piston.core.bundle.interface import ENCODER, source_encoder_interface
from piston.core.bundle.manifest import EngineSpec
from piston.core.bundle.plan_header import PlanHeader
from piston.core.cache_dir import cache_dir
from piston.core.errors import BundleCorruptError, BundleError, DeviceMemoryError, Error, MisuseError
from piston.runtime import kernels
from piston.runtime.backends.cuda_driver import Device
from piston.runtime.backends.engine import Engine
from piston.runtime.backends.environment import Machine
from piston.runtime.bundle import Bundle

if TYPE_CHECKING:
    from piston.runtime.backends.cuda_driver import Cuda
    from piston.runtime.backends.session import Session
    from piston.runtime.backends.tensorrt.plan import Plan

TENSORRT_EXTRAS = {"tensorrt": "trt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The sizes and options an engine is loaded with."""

    num_slots: int
    capacity: int
    threads: int = 0
    profile: str | None = None  # path of ONNX Runtime's profile; other backends write none


@dataclass(frozen=True, slots=True)
class Backend:
    """The backend of a target family: `check` raises what prevents an engine on a machine, `open` loads it."""

    check: Callable[[Bundle, EngineSpec, Machine], None]
    open: Callable[[Bundle, EngineSpec, Sizes], Engine]
    open_session: Callable[[Bundle, EngineSpec, Sizes], "Session"] | None = None  # None: it runs decoders alone


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one engine of a bundle on one machine; `problem` is what prevents it."""

    spec: EngineSpec
    reason: str
    problem: Error | None = None


def select_engine(
    bundle: Bundle, target: str | None = None, machine: Machine | None = None
) -> tuple[EngineSpec, dict[str, str]]:
    """The best engine that runs here, and a sentence about each of the others by target.

    A named `target` limits the choice to that engine, or to the engines of that family: no other engine is ever taken
    instead.

    Raises:
        BundleError: this is not a bundle, or it has no such engine.
        Error: none runs here. With one candidate it is that engine's own error, else a BundleError with every reason.
    """
    verdicts = evaluate_candidates(bundle, target, machine)
    chosen = _usable(bundle, verdicts)[0]
    return chosen, {verdict.spec.target: verdict.reason for verdict in verdicts if verdict.spec is not chosen}


def candidates(bundle: Bundle, target: str | None = None) -> list[EngineSpec]:
    """Engines that seem to run here, checked without opening them, the best first; raises as `select_engine` does.

    With a `target` it is only the one that `select_engine` takes: it is never replaced.
    """
    found = _usable(bundle, evaluate_candidates(bundle, target))
    return found if target is None else found[:1]


def _usable(bundle: Bundle, verdicts: list[Verdict]) -> list[EngineSpec]:
    if found := [verdict.spec for verdict in verdicts if verdict.problem is None]:
        return found
    if len(verdicts) == 1 and (problem := verdicts[0].problem) is not None:
        raise problem
    reasons = "; ".join(f"{verdict.spec.target}: {verdict.reason.rstrip('.')}" for verdict in verdicts)
    raise BundleError(f"No engine of {bundle.directory} runs here. {reasons}.")


def evaluate_candidates(bundle: Bundle, target: str | None = None, machine: Machine | None = None) -> list[Verdict]:
    """The verdict on each engine that `target` admits, best family first; raises as `select_engine` does."""
    machine = machine or Machine()
    verdicts: list[Verdict] = []
    best: EngineSpec | None = None
    for spec in sorted(bundle.engines(target), key=_rank):
        try:
            backend_of(spec).check(bundle, spec, machine)
        except Error as problem:
            verdicts.append(Verdict(spec, str(problem), problem))
            continue
        verdicts.append(
            Verdict(spec, f"It runs here too, but {best.target} is preferred." if best else "It is the best.")
        )
        best = best or spec
    return verdicts


def open_engine(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    """Load an engine that `select_engine` gave; raises EngineError and MissingExtraError as the backend does."""
    return backend_of(spec).open(bundle, spec, sizes)


def open_session(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> "Session":
    """Load the one graph without states of an engine that `choose` gave; raises as `open_engine` does."""
    opener = backend_of(spec).open_session
    if opener is None:
        raise BundleError(f"{spec.target} runs decoders alone here; build the bundle for ort-cpu.")
    return opener(bundle, spec, sizes)


def backend_of(spec: EngineSpec) -> Backend:
    """The table's entry for an engine's family; raises BundleError for an unknown family."""
    if (backend := BACKENDS.get(family_of(spec.target))) is None:
        raise BundleError(f"This runtime has no backend for {spec.target}; build the bundle for ort-cpu.")
    return backend


def family_of(target: str) -> str:
    """The target without its GPUs: tensorrt-rtx for tensorrt-rtx:sm89."""
    return target.partition(":")[0]


def compute_capabilities_of(spec: EngineSpec) -> tuple[str, ...]:
    """The GPUs that an engine was compiled for according to the manifest, such as sm89; empty if it is for all."""
    found = spec.actual.get("compute_capabilities", ())
    return tuple(str(item) for item in found) if isinstance(found, list | tuple) else ()


def _rank(spec: EngineSpec) -> tuple[int, bool]:
    """Sort key: families in the order of the table; of the CPU's two engines the one on Piston's kernels first."""
    families = list(BACKENDS)
    family = family_of(spec.target)
    return families.index(family) if family in families else len(families), spec.target != kernels.TARGET


def _check_ort_cpu(bundle: Bundle, spec: EngineSpec, machine: Machine) -> None:
    del bundle
    machine.require_module("onnxruntime", "ort")
    if spec.target == kernels.TARGET:
        kernels.require()


def _open_ort_cpu(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    from piston.runtime.backends.ort_cpu import OrtEngine
    from piston.runtime.backends.session import OrtOptions

    options = OrtOptions(threads=sizes.threads, profile=sizes.profile, kernels=spec.target == kernels.TARGET)
    path, slots, capacity = bundle.directory / spec.path, sizes.num_slots, sizes.capacity
    if not spec.cross.states:
        return OrtEngine.open(path, spec.cache, num_slots=slots, capacity=capacity, options=options)
    from piston.runtime.backends.ort_encoder_decoder import OrtEncoderDecoder

    interface = source_encoder_interface(spec.cross, bundle.manifest.graphs[ENCODER].inputs)
    return OrtEncoderDecoder.open_both(
        (bundle.directory / spec.files[ENCODER], interface),
        (path, spec.cache, spec.cross),
        num_slots=slots,
        capacity=capacity,
        max_source=spec.cross.num_positions or sizes.capacity,
        options=options,
    )


def _open_ort_cpu_session(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> "Session":
    from piston.runtime.backends.session import OrtOptions, OrtSession

    ((graph, file),) = spec.files.items()
    options = OrtOptions(threads=sizes.threads, profile=sizes.profile, kernels=spec.target == kernels.TARGET)
    return OrtSession.open(bundle.directory / file, bundle.manifest.graphs[graph], options)


def _check_tensorrt(bundle: Bundle, spec: EngineSpec, machine: Machine) -> None:
    from piston.runtime.backends.tensorrt.plan import LEAN, check_gpu, check_version

    device = machine.require_device()
    for file in spec.files.values():
        header = PlanHeader.read(path := bundle.directory / file)
        check_gpu(header.compute_capabilities or compute_capabilities_of(spec), device, str(path))
        if is_lean := _is_lean(header, spec, machine):
            check_version(header, machine.tensorrt_version(LEAN), str(path), is_lean=is_lean)
        else:
            machine.require_module(header.compiler, TENSORRT_EXTRAS[header.compiler])
            check_version(header, machine.tensorrt_version(header.compiler), str(path))
    _check_device_memory(bundle, spec, device)


def _is_lean(header: PlanHeader, spec: EngineSpec, machine: Machine) -> bool:
    """Whether the lean runtime loads the plan: it is version-compatible, and only the lean TensorRT is installed."""
    from piston.runtime.backends.tensorrt.plan import LEAN

    compiler = spec.requested.get("compiler")
    is_compatible = isinstance(compiler, Mapping) and compiler.get("version_compatible") is True
    if header.compiler != "tensorrt" or not is_compatible or machine.has_module("tensorrt"):
        return False
    return machine.has_module(LEAN)


def _open_tensorrt(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    from piston.runtime.backends.cuda_driver import Cuda
    from piston.runtime.backends.tensorrt.engine import TensorRTEngine

    _refuse_cpu_options(spec, sizes)
    cuda = Cuda.open()
    plan = _plan_of(bundle, spec, spec.path, cuda)
    options = {"num_slots": sizes.num_slots, "capacity": sizes.capacity, "max_top_k": _stated(spec, "max_top_k")}
    if not spec.cross.states:
        return TensorRTEngine.open(plan, spec.cache, cuda=cuda, **options)
    from piston.runtime.backends.tensorrt.encoder_decoder import TensorRTEncoderDecoder

    try:
        encoder = _plan_of(bundle, spec, spec.files[ENCODER], cuda)
    except BaseException:
        plan.close()
        raise
    interface = source_encoder_interface(spec.cross, bundle.manifest.graphs[ENCODER].inputs)
    return TensorRTEncoderDecoder.open_both((encoder, interface), (plan, spec.cache, spec.cross), cuda=cuda, **options)


def _open_tensorrt_session(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> "Session":
    from piston.runtime.backends.cuda_driver import Cuda
    from piston.runtime.backends.tensorrt.session import TensorRTSession

    _refuse_cpu_options(spec, sizes)
    ((graph, file),) = spec.files.items()
    cuda = Cuda.open()
    return TensorRTSession.open(
        _plan_of(bundle, spec, file, cuda),
        bundle.manifest.graphs[graph],
        cuda=cuda,
        max_batch=sizes.num_slots,
        max_length=sizes.capacity,
    )


def _plan_of(bundle: Bundle, spec: EngineSpec, file: str, cuda: "Cuda") -> "Plan":
    from piston.runtime.backends.tensorrt.plan import Plan

    record, path = bundle.manifest.files[file], bundle.directory / file
    is_lean = _is_lean(PlanHeader.read(path), spec, Machine())
    return Plan.load(path, record, cuda.device(), cache_dir("kernels"), is_lean=is_lean)


def _check_ort_cuda(bundle: Bundle, spec: EngineSpec, machine: Machine) -> None:
    device = machine.require_device()
    machine.require_provider("CUDAExecutionProvider")
    _check_device_memory(bundle, spec, device)


def _open_ort_cuda(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> Engine:
    from piston.runtime.backends.cuda_driver import Cuda
    from piston.runtime.backends.ort_cuda import OrtCudaEngine

    _refuse_cpu_options(spec, sizes)
    return OrtCudaEngine.open(
        bundle.directory / spec.path,
        spec.cache,
        cuda=Cuda.open(),
        num_slots=sizes.num_slots,
        capacity=sizes.capacity,
    )


def _open_ort_cuda_session(bundle: Bundle, spec: EngineSpec, sizes: Sizes) -> "Session":
    from piston.runtime.backends.ort_cuda import open_cuda_session

    _refuse_cpu_options(spec, sizes)
    ((graph, file),) = spec.files.items()
    return open_cuda_session(bundle.directory / file, bundle.manifest.graphs[graph])


def _refuse_cpu_options(spec: EngineSpec, sizes: Sizes) -> None:
    for name, value in (("threads", sizes.threads), ("profile", sizes.profile)):
        if value:
            raise MisuseError(f"{name} is {value}, but {spec.target} runs on the GPU; leave it out.")


def _check_device_memory(bundle: Bundle, spec: EngineSpec, device: Device) -> None:
    """Raise unless weights and the states of one row, if it has any, fit: the minimum of an engine."""
    directories = tuple(f"{file.rpartition('/')[0]}/" for file in spec.files.values())
    needed = sum(record.size for name, record in bundle.manifest.files.items() if name.startswith(directories))
    needed += spec.cache.bytes_per_token * _stated(spec, "capacity") if spec.cache.states else 0
    if spec.cross.states:
        needed += sum(spec.cross.array_bytes(1, _stated(spec, "max_source")))
    if needed > device.free_bytes:
        raise DeviceMemoryError(
            f"{spec.target} needs at least {needed / 1e6:,.1f} MB on the GPU; of the "
            f"{device.total_bytes / 1e6:,.1f} MB of {device.name} {device.free_bytes / 1e6:,.1f} MB are free."
        )


def _stated(spec: EngineSpec, name: str) -> int:
    if not isinstance(value := spec.actual.get(name), int):
        raise BundleCorruptError(
            f"The manifest states {name} of {spec.target} as {value!r}, not a number; build it again."
        )
    return value


# The best first: compiled for exactly this GPU, then for its kind, then for any machine.
BACKENDS: Mapping[str, Backend] = {
    "tensorrt": Backend(_check_tensorrt, _open_tensorrt, _open_tensorrt_session),
    "tensorrt-rtx": Backend(_check_tensorrt, _open_tensorrt, _open_tensorrt_session),
    "ort-cuda": Backend(_check_ort_cuda, _open_ort_cuda, _open_ort_cuda_session),
    "ort-cpu": Backend(_check_ort_cpu, _open_ort_cpu, _open_ort_cpu_session),
}
